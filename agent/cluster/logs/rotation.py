"""What can be known of the file in which a node keeps a container's log: whether it was ended, and what is behind it.

The node serves one file, the current one, and begins another when it is full. A follower goes on in the new file, but
not always: one that was opened shortly before stands still until the next change, and one that was held back over two
changes leaves the file between them out (both in the kubelet of 1.37, and neither is said). So, once a file can have
been full, a short silence is looked into, and lines that stand further apart than a file lives are held against the
beginning of the current file.

A `NodeFile` lives as long as one `follow`. It asks the node for the beginning of the current file only where two lines
leave room for a file that nobody has read.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import structlog

from agent.cluster.logs.line_reader import LONGEST_PREFIX, PREFIX, START, Hole, nanoseconds
from agent.cluster.logs.request import LogRequest
from agent.domain.errors import ClusterError
from agent.domain.observations import LogGap

if TYPE_CHECKING:
    import aiohttp

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef
    from agent.domain.log_cursor import Cursor

log = structlog.get_logger(__name__)

NODE_LIMIT = 1 << 20
# How much of the time between two lines the reader may not have waited for the second.
SLACK = 1.0


class NodeFile:
    """The file that the cursor lies in.

    `follows`: the open stream is known to go on in the next file. `limit`: bytes below which no file is ended.
    """

    def __init__(
        self, client: Client, target: ContainerRef, cursor: Cursor, timeout: aiohttp.ClientTimeout, limit: int
    ) -> None:
        self.client = client
        self.target = target
        self.timeout = timeout
        self.limit = limit
        self.follows = False
        self.written = 0.0 if cursor == START else math.inf  # at most so much of it is behind the cursor

    @property
    def full(self) -> bool:
        """Whether the node may have ended the file that the cursor lies in."""
        return self.written >= self.limit

    def begin(self, block: bytes) -> None:
        """Take note that a file began in a block, as it does behind a gap."""
        self.written = 0.0
        self.passed(block)

    def passed(self, block: bytes) -> None:
        """Take note that the cursor has moved over a block; the node's lines and pieces carry more words."""
        self.written += len(block) + 12 * (block.count(b"\n") + 1) + len(block) // 256

    async def judged(self, hole: Hole, waited: float) -> LogGap | None:
        """Return the gap that a hole may be: a whole file of the node's can lie in it."""
        if self.follows and waited >= hole.seconds - SLACK:
            return None  # the follower stood at the end of the file nearly all the time: nothing was written
        try:
            head = await self.head()
        except ClusterError as error:
            log.warning("where the log's current file begins cannot be read", pod=self.target.pod, error=error.message)
            head = b""
        if not head:
            return LogGap(hole.since, hole.until)
        first, since, until = (nanoseconds(each) for each in (head, hole.since.encode(), hole.until.encode()))
        return None if first <= since else LogGap(hole.since, hole.until, certain=first < until)

    async def head(self) -> bytes:
        """Return the timestamp of the first line of the node's current file, none when it is empty.

        Raises:
            ClusterError: it cannot be read.
        """
        body = LogRequest(self.client, self.target, START, self.timeout, limitBytes=str(LONGEST_PREFIX))
        async with body:
            read = b""
            while block := await body.read():
                read += block
        match = PREFIX.match(read)
        return match[1] if match else b""
