"""One environment's log, read to its end over any number of broken connections.

`follow` lives as long as a session wants the log. It is pulled: while nobody takes a piece, nothing is read, and the
transport's flow control stops the node. The end of a response decides nothing (API servers, load balancers and log
rotation all end streams without an error), silence decides nothing either (rotation and half-open connections go
silent); only the container's state, which the caller tells, does:

* running: the log is opened again from the cursor; after a long silence a plain read proves the stream alive or dead;
* terminated: one plain read has the rest. It is saved if the supervisor's last marker is the end of an open stream that
  stays silent. While the container runs, this marker means nothing, because a process of the commands can forge it;
* gone: the log ends with a `LogLost` that says why.

No error of the cluster leaves here: a log that cannot be had is said, and changes no verdict.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import aiohttp
import structlog

from agent.cluster.logs.line_reader import Hole, LineReader
from agent.cluster.logs.request import Body, Target, stop
from agent.cluster.logs.rotation import NODE_LIMIT, NodeFile
from agent.domain.backoff import Backoff
from agent.domain.errors import ClusterError
from agent.domain.observations import LogGap, LogLost, LogPiece

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from agent.cluster.api.client import Client
    from agent.domain.log_cursor import Cursor

log = structlog.get_logger(__name__)

UNAVAILABLE = b"unable to retrieve container logs for "
NO_POD = re.compile(r'\bpods "[^"]*" not found')
NOT_STARTED = "waiting to start"


class ContainerState(Enum):
    """What the caller knows of the container; `GONE` is said of the pod."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"
    GONE = "gone"


class Container(Protocol):
    """The container whose log is read, as its watch sees it."""

    @property
    def state(self) -> ContainerState:
        """What is known now."""

    @property
    def log_ended(self) -> bool:
        """Whether the log that was read ends with the supervisor's last marker."""

    async def left(self, state: ContainerState) -> None:
        """Wait until the state is another one."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `probe` doubles up to `longest_probe` while the silence lasts, `pause` likewise while nothing helps."""

    connect: float = 10.0
    read: float = 30.0
    probe: float = 30.0
    longest_probe: float = 300.0
    stalled: float = 2.0
    """The first probe of a stream whose file may have been full: less than any file lives (the kubelet looks at files
    every 3 s at most)."""
    settle: float = 1.0
    """How long an open stream may be silent after the container has ended."""
    pause: float = 0.1
    longest_pause: float = 5.0
    steady: float = 5.0
    """How long a stream must have lived for its end not to count as a failure."""
    refused: float = 10.0
    """How long an answer is asked for again that looks final, such as 400, 403 or 404."""
    settle_after_last: float = 0.1
    """The same, if the log that was read ends with the supervisor's last marker."""
    give_up: float = 60.0
    """How long the rest of an ended container's log is asked for."""
    longest_retry_after: float = 60.0


PATIENT = Patience()
# So many plain reads of an ended container must miss the cursor's line before that is said to be a gap.
PROOFS_OF_A_GAP = 3


async def follow(
    client: Client,
    target: Target,
    cursor: Cursor,
    container: Container,
    patience: Patience = PATIENT,
    node_limit: int = NODE_LIMIT,
) -> AsyncGenerator[LogPiece | LogGap | LogLost, None]:
    """Yield the log from the cursor to its end. Close it (`aclosing`) when it is left early.

    `node_limit` is how many bytes a file of the node's has at least before another is begun.
    """
    try:
        follower = Follower(client, target, cursor, container, patience, node_limit)
    except ValueError as error:
        yield LogLost(f"it cannot be read from where it was left: {error}")
        return
    async with aclosing(follower.items()) as items:
        async for item in items:
            yield item


class Follower:
    """The state of one `follow`: where reading goes on, and what has gone wrong since something went right."""

    def __init__(
        self,
        client: Client,
        target: Target,
        cursor: Cursor,
        container: Container,
        patience: Patience,
        node_limit: int,
    ) -> None:
        self.client = client
        self.target = target
        self.cursor = LineReader(cursor).cursor
        self.container = container
        self.patience = patience
        self.file = NodeFile(client, target, cursor, self.timeout(patience.read), node_limit)
        self.opened = 0
        # Half of each pause is random, so that followers which were cut together do not come back together.
        self.backoff = Backoff(patience.pause, patience.longest_pause, least_share=0.5)
        self.failing_since: float | None = None
        self.error: ClusterError | None = None
        self.missed: LogGap | None = None
        self.misses = 0
        self.complete = False

    async def items(self) -> AsyncGenerator[LogPiece | LogGap | LogLost, None]:
        """Read again and again until the log ends."""
        while True:
            state = self.container.state
            if state is ContainerState.WAITING:
                await self.container.left(state)
                continue
            if state is ContainerState.GONE:
                if not self.container.log_ended:
                    yield LogLost("the pod is gone")
                return
            async with aclosing(self.attempt(state)) as items:
                async for item in items:
                    yield item
            if self.complete:
                return
            if state is ContainerState.TERMINATED and self.error is None and self.read_whole():
                if self.missed:
                    yield self.missed
                return
            if why := self.lost(state):
                if not self.container.log_ended:
                    yield LogLost(why)
                return
            await self.pause(state)

    async def attempt(self, state: ContainerState) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Read once, with an open end while the container runs; `error` says how it went."""
        began = now()
        self.error = None
        try:
            async with aclosing(self.stream() if state is ContainerState.RUNNING else self.rest()) as items:
                async for item in items:
                    if isinstance(item, LogGap) or item.data:
                        self.recovered()
                    yield item
        except ClusterError as error:
            self.error = error
        else:
            if now() - began >= self.patience.steady:
                self.recovered()

    async def stream(self) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Follow until the response ends, proves to be dead, or is silent after the container has ended."""
        if self.opened:
            self.client.metrics.log_reopened.inc()
        self.opened += 1
        self.file.follows = False
        delivered = False
        silence = self.first_silence
        waited = 0.0
        reader = LineReader(self.cursor)
        body = Body(self.client, self.target, self.cursor, self.timeout(), follow="true")
        async with body, self.end_of_run() as ended:
            while True:
                began = now()
                settle = self.patience.settle_after_last if self.container.log_ended else self.patience.settle
                block = await body.block(ended, silence, settle)
                waited += now() - began
                if block:
                    delivered = True
                    async with aclosing(self.take(reader, block, waited)) as items:
                        async for item in items:
                            yield item
                    if reader.served_again:
                        log.info("a log stream began its file again and is opened anew", pod=self.target.pod)
                        return
                    silence, waited = self.first_silence, 0.0
                elif block is not None or ended.done():
                    if block is not None:
                        self.check(reader)
                    # A stream of a file that was full may stand still although more was written.
                    sure = ended.done() and delivered and not self.file.full
                    self.complete = sure and self.container.log_ended
                    return
                else:
                    position = self.cursor
                    async with aclosing(self.rest()) as items:
                        async for item in items:
                            yield item
                    if self.cursor != position:
                        log.info("a silent log stream was dead and is opened again", pod=self.target.pod)
                        return
                    self.file.follows = self.missed is None
                    silence = max(self.first_silence, min(2 * silence, self.patience.longest_probe))

    async def rest(self) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Read what there is, without following."""
        reader = LineReader(self.cursor)
        async with Body(self.client, self.target, self.cursor, self.timeout(self.patience.read)) as body:
            while block := await body.read():
                async with aclosing(self.take(reader, block)) as items:
                    async for item in items:
                        yield item
        self.check(reader)
        self.missed = reader.finish()
        if self.missed:
            self.missed = replace(self.missed, certain=not self.file.full)

    async def take(
        self, reader: LineReader, block: bytes, waited: float = 0.0
    ) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Yield what is new in a block that was waited for so many seconds."""
        certain = not self.file.full
        self.file.passed(block)
        reader.watchful = self.file.full
        for item in reader.feed(block):
            match item:
                case Hole():
                    gap = await self.file.judged(item, waited)
                case LogGap():
                    gap = replace(item, certain=certain)
                case LogPiece():
                    yield item
                    continue
            if gap:
                self.file.begin(block)
                yield gap
        self.cursor = reader.cursor

    @property
    def first_silence(self) -> float:
        """Seconds until an open stream that has just brought something is looked into."""
        return (
            min(self.patience.stalled, self.patience.probe)
            if self.file.full and not self.file.follows
            else self.patience.probe
        )

    def timeout(self, silence: float | None = None) -> aiohttp.ClientTimeout:
        """Return the limits of a request. A follower's silence is watched by its reader, who knows the container."""
        return aiohttp.ClientTimeout(total=None, sock_connect=self.patience.connect, sock_read=silence)

    @asynccontextmanager
    async def end_of_run(self) -> AsyncIterator[asyncio.Task[None]]:
        """Watch for the end of the running state as long as the block lasts."""
        task = asyncio.create_task(self.container.left(ContainerState.RUNNING), name="log: end of run")
        try:
            yield task
        finally:
            await stop(task)

    # ------------------------------------------------------------------------------------------------------- judgement

    def check(self, reader: LineReader) -> None:
        """Refuse a body that holds the kubelet's excuse and no line of the log.

        Raises:
            ClusterError: so it is.
        """
        if reader.foreign.startswith(UNAVAILABLE) and not reader.timestamp:
            raise ClusterError("the node no longer has the container's log")

    def read_whole(self) -> bool:
        """Whether the plain read that ended well is to be believed; a missing line must stay missing."""
        self.misses = self.misses + 1 if self.missed else 0
        return self.misses in (0, PROOFS_OF_A_GAP)

    def recovered(self) -> None:
        """Begin anew with patience."""
        self.backoff.reset()
        self.failing_since = None

    def lost(self, state: ContainerState) -> str:
        """Return why no more of the log can be had, or "" while asking again may help."""
        error = self.error
        if error is None:
            return ""
        if error.status == 404 and NO_POD.search(error.message):
            return "the pod is gone"
        if state is ContainerState.RUNNING and (error.retryable or NOT_STARTED in error.message):
            return ""
        if self.failing_since is None:
            self.failing_since = now()
        limit = self.patience.give_up if error.retryable and not self.container.log_ended else self.patience.refused
        return error.message if now() - self.failing_since >= limit else ""

    async def pause(self, state: ContainerState) -> None:
        """Wait before the next attempt: as long as the server asks for, else until the state changes or a backoff."""
        if self.error and self.backoff.failures == 0:
            log.warning("the log cannot be read now", pod=self.target.pod, error=self.error.message)
        delay = self.backoff.next()
        if self.error and self.error.retry_after is not None:
            await asyncio.sleep(min(self.error.retry_after, self.patience.longest_retry_after))
            return
        try:
            async with asyncio.timeout(delay):
                await self.container.left(state)
        except TimeoutError:
            return


def now() -> float:
    """Return the loop's monotonic clock."""
    return asyncio.get_running_loop().time()
