"""What is known of the node's file that holds the log: whether it may be full, and whether a file was skipped.

The kubelet serves only the current file, and starts a new file when the current file is full. A stream goes on in the
new file, with two exceptions (seen in kubelet 1.37, both without an error). A stream that was opened shortly before the
kubelet starts a new file stays silent until the kubelet starts another file. A stream that was not read while the
kubelet started two files skips the first of them. So when a file may be full, the log follower checks a stream after a
short silence. When the node may have written and removed a whole file between two lines, the log follower compares the
times of the lines with the first line of the current file.

A `NodeFile` lives as long as one call of `follower.follow`. It makes a request only when a whole file may lie between
two lines.
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

# Number of bytes below which the node starts no new log file. Kubelets start a new file at `containerLogMaxSize`, 10
# MiB by default.
NODE_LIMIT = 1 << 20
# Between two log lines, the reader may have spent at most this many seconds on other work than waiting for bytes.
SLACK = 1.0
# Maximum number of bytes that the node adds to each line of its log file: the stream's name, a tag and spaces.
LINE_OVERHEAD = 12


class NodeFile:
    """The node's log file in which the cursor (the read position) lies. Owned by a `LogFollower`.

    `follows` is true if the open stream is known to go on in the next file. The node starts no new file before `limit`
    bytes.
    """

    def __init__(
        self, client: Client, target: ContainerRef, cursor: Cursor, timeout: aiohttp.ClientTimeout, limit: int
    ) -> None:
        self.client = client
        self.target = target
        self.timeout = timeout
        self.limit = limit
        self.follows = False
        # Upper bound of the number of bytes in the file before the cursor.
        self.written = 0.0 if cursor == START else math.inf

    @property
    def full(self) -> bool:
        """Whether the node may have started a new file after the file of the cursor."""
        return self.written >= self.limit

    def begin(self, block: bytes) -> None:
        """Record that the node's next log file starts in this block of log bytes, because a gap precedes the block."""
        self.written = 0.0
        self.advance(block)

    def advance(self, block: bytes) -> None:
        """Record that the cursor has passed a block of log bytes. In the node's file, the block has more bytes."""
        self.written += len(block) + LINE_OVERHEAD * (block.count(b"\n") + 1) + len(block) // 256

    async def judge_hole(self, hole: Hole, waited: float) -> LogGap | None:
        """Return a gap if the node may have written and removed a whole log file in the hole, else None.

        `waited` is the number of seconds for which the reader waited for the bytes after the hole.
        """
        if self.follows and waited >= hole.seconds - SLACK:
            # The reader waited at the end of the file nearly all the time, so the node wrote no file in the hole.
            return None
        try:
            head = await self.head()
        except ClusterError as error:
            log.warning(
                "the first line of the log's current file cannot be read", pod=self.target.pod, error=error.message
            )
            head = b""
        if not head:
            return LogGap(hole.since, hole.until)
        first, since, until = (nanoseconds(each) for each in (head, hole.since.encode(), hole.until.encode()))
        return None if first <= since else LogGap(hole.since, hole.until, certain=first < until)

    async def head(self) -> bytes:
        """Return the timestamp of the first line of the node's current log file, b"" if the file is empty.

        Raises:
            ClusterError: the file cannot be read.
        """
        body = LogRequest(self.client, self.target, START, self.timeout, limitBytes=str(LONGEST_PREFIX))
        async with body:
            read = b""
            while block := await body.read():
                read += block
        match = PREFIX.match(read)
        return match[1] if match else b""
