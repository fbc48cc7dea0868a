"""Read the log of one container to its end, over any number of broken connections.

`follow` lives as long as a session wants the log. The caller pulls. While the caller takes no piece, nothing is read,
and flow control stops the node. The end of a response proves nothing, because API servers, load balancers and log
rotation all end streams without an error. Silence proves nothing either, because rotation and half-open connections
are silent. Only the state of the container decides, which the caller knows from its watch:

* running: the log is opened again at the cursor. After a long silence a plain read shows whether the stream works.
* terminated: one plain read has the rest. The read is saved if the last marker ends an open stream that is silent.
  While the container runs, this marker proves nothing, because a process of the commands can forge the marker.
* gone: the log ends with a `LogLost` that has the reason.

No `ClusterError` leaves this module. A log that cannot be read becomes a `LogLost`, and changes no outcome.
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

from agent.aio import cancel_and_wait
from agent.backoff import Backoff
from agent.cluster.logs.line_reader import Hole, LineReader
from agent.cluster.logs.request import LogRequest
from agent.cluster.logs.rotation import NODE_LIMIT, NodeFile
from agent.domain.errors import ClusterError
from agent.domain.observations import LogGap, LogLost, LogPiece

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef
    from agent.domain.log_cursor import Cursor

log = structlog.get_logger(__name__)

UNAVAILABLE = b"unable to retrieve container logs for "
NO_POD = re.compile(r'\bpods "[^"]*" not found')
NOT_STARTED = "waiting to start"


class ContainerState(Enum):
    """The state of the container as the caller knows it. `GONE` means that the pod is gone."""

    WAITING = "waiting"
    RUNNING = "running"
    TERMINATED = "terminated"
    GONE = "gone"


class Container(Protocol):
    """The container whose log is read. The caller implements it from its watch and owns it."""

    @property
    def state(self) -> ContainerState:
        """The current state of the container."""

    @property
    def log_ended(self) -> bool:
        """Whether the log that was read ends with the supervisor's last marker."""

    async def wait_while(self, state: ContainerState) -> None:
        """Return when the container is no longer in this state."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a `LogFollower` waits. All followers share the value."""

    connect: float = 10.0
    """Seconds until a connection is given up."""
    read: float = 30.0
    """Seconds without a byte until a plain read is given up."""
    probe: float = 30.0
    """Seconds of silence until an open stream is probed by a plain read. Doubles while the silence lasts."""
    longest_probe: float = 300.0
    stalled: float = 2.0
    """Seconds of silence until the first probe if the node's file may have been full. Shorter than any file lives,
    because the kubelet looks at the size of files at most every 3 s."""
    settle: float = 1.0
    """Seconds of silence until an open stream is closed after the container has ended."""
    settle_after_last: float = 0.1
    """Seconds of this silence if the log that was read ends with the supervisor's last marker."""
    pause: float = 0.1
    """Seconds of the longest possible pause after the first failure. Doubles while nothing is read."""
    longest_pause: float = 5.0
    steady: float = 5.0
    """Seconds that a stream must last so that its end is not a failure."""
    refused: float = 10.0
    """Seconds of retries after an answer that looks final, such as 400, 403 or 404."""
    give_up: float = 60.0
    """Seconds of retries for the rest of an ended container's log."""
    longest_retry_after: float = 60.0


DEFAULT_TIMINGS = Timings()
# Number of plain reads of an ended container that must lack the cursor's line before the lack counts as a gap.
PROOFS_OF_A_GAP = 3


async def follow(
    client: Client,
    target: ContainerRef,
    cursor: Cursor,
    container: Container,
    timings: Timings = DEFAULT_TIMINGS,
    node_limit: int = NODE_LIMIT,
) -> AsyncGenerator[LogPiece | LogGap | LogLost, None]:
    """Yield the log from the cursor to its end. A caller that leaves early must use `aclosing`.

    `node_limit` is the least number of bytes after which the node starts a new file.
    """
    try:
        follower = LogFollower(client, target, cursor, container, timings, node_limit)
    except ValueError as error:
        yield LogLost(f"the log cannot be resumed: {error}")
        return
    async with aclosing(follower.items()) as items:
        async for item in items:
            yield item


class LogFollower:
    """The state of one `follow`: the cursor, the open request, and the failures since the last success."""

    def __init__(
        self,
        client: Client,
        target: ContainerRef,
        cursor: Cursor,
        container: Container,
        timings: Timings,
        node_limit: int,
    ) -> None:
        self.client = client
        self.target = target
        self.cursor = LineReader(cursor).cursor
        self.container = container
        self.timings = timings
        self.file = NodeFile(client, target, cursor, self.timeout(timings.read), node_limit)
        self.opened = 0
        # Half of each pause is random, so that followers that lost their connections together do not reconnect
        # together.
        self.backoff = Backoff(timings.pause, timings.longest_pause, least_share=0.5)
        self.failing_since: float | None = None
        self.error: ClusterError | None = None
        self.missed: LogGap | None = None
        self.misses = 0
        self.complete = False

    async def items(self) -> AsyncGenerator[LogPiece | LogGap | LogLost, None]:
        """Repeat attempts until the log ends."""
        while True:
            state = self.container.state
            if state is ContainerState.WAITING:
                await self.container.wait_while(state)
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
            if state is ContainerState.TERMINATED and self.error is None and self.is_complete():
                if self.missed:
                    yield self.missed
                return
            if reason := self.loss_reason(state):
                if not self.container.log_ended:
                    yield LogLost(reason)
                return
            await self.pause(state)

    async def attempt(self, state: ContainerState) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Send one request: a stream while the container runs, else a plain read. Sets `error` if the request fails."""
        began = now()
        self.error = None
        try:
            async with aclosing(self.stream() if state is ContainerState.RUNNING else self.rest()) as items:
                async for item in items:
                    if isinstance(item, LogGap) or item.data:
                        self.on_progress()
                    yield item
        except ClusterError as error:
            self.error = error
        else:
            if now() - began >= self.timings.steady:
                self.on_progress()

    async def stream(self) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Read the stream until it ends, a probe shows that it is dead, or it is silent after the container's end."""
        if self.opened:
            self.client.metrics.log_reopened.inc()
        self.opened += 1
        self.file.follows = False
        delivered = False
        silence = self.first_silence
        waited = 0.0
        reader = LineReader(self.cursor)
        body = LogRequest(self.client, self.target, self.cursor, self.timeout(), follow="true")
        async with body, self.end_of_run() as ended:
            while True:
                began = now()
                settle = self.timings.settle_after_last if self.container.log_ended else self.timings.settle
                block = await body.block(ended, silence, settle)
                waited += now() - began
                if block:
                    delivered = True
                    async with aclosing(self.read_block(reader, block, waited)) as items:
                        async for item in items:
                            yield item
                    if reader.served_again:
                        log.info("a log stream repeated its file and is opened again", pod=self.target.pod)
                        return
                    silence, waited = self.first_silence, 0.0
                elif block is not None or ended.done():
                    self.check(reader)
                    # A stream of a file that was full may stand still although more was written.
                    self.complete = ended.done() and delivered and self.container.log_ended and not self.file.full
                    return
                else:
                    position = self.cursor
                    async with aclosing(self.rest()) as items:
                        async for item in items:
                            yield item
                    if self.cursor != position:
                        log.info("a log stream was dead and is opened again", pod=self.target.pod)
                        return
                    self.file.follows = self.missed is None
                    silence = max(self.first_silence, min(2 * silence, self.timings.longest_probe))

    async def rest(self) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Read the log that the node has now, by a plain read."""
        reader = LineReader(self.cursor)
        async with LogRequest(self.client, self.target, self.cursor, self.timeout(self.timings.read)) as body:
            while block := await body.read():
                async with aclosing(self.read_block(reader, block)) as items:
                    async for item in items:
                        yield item
        self.check(reader)
        self.missed = reader.finish()
        if self.missed:
            self.missed = replace(self.missed, certain=not self.file.full)

    async def read_block(
        self, reader: LineReader, block: bytes, waited: float = 0.0
    ) -> AsyncGenerator[LogPiece | LogGap, None]:
        """Yield the new items of a block. `waited` is the number of seconds until the block arrived."""
        certain = not self.file.full
        self.file.advance(block)
        reader.watchful = self.file.full
        for item in reader.feed(block):
            match item:
                case Hole():
                    gap = await self.file.judge_hole(item, waited)
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
        """Seconds of silence, after a block, until the stream is probed."""
        return (
            min(self.timings.stalled, self.timings.probe)
            if self.file.full and not self.file.follows
            else self.timings.probe
        )

    def timeout(self, silence: float | None = None) -> aiohttp.ClientTimeout:
        """Return the timeouts of a request. A stream has no silence timeout, because `stream` probes it instead."""
        return aiohttp.ClientTimeout(total=None, sock_connect=self.timings.connect, sock_read=silence)

    @asynccontextmanager
    async def end_of_run(self) -> AsyncIterator[asyncio.Task[None]]:
        """Yield a task that ends when the container is no longer running."""
        task = asyncio.create_task(self.container.wait_while(ContainerState.RUNNING), name="log: end of run")
        try:
            yield task
        finally:
            await cancel_and_wait(task, ignore_errors=True)

    # ---- decisions about the log: is it complete, is it lost

    def check(self, reader: LineReader) -> None:
        """Check that the body is a log, and not the kubelet's error message with status 200.

        Raises:
            ClusterError: the body is the error message.
        """
        if reader.foreign.startswith(UNAVAILABLE) and not reader.timestamp:
            raise ClusterError("the node no longer has the container's log")

    def is_complete(self) -> bool:
        """Return whether the last plain read is final. If the cursor's line was missing, more reads must confirm it."""
        self.misses = self.misses + 1 if self.missed else 0
        return self.misses in (0, PROOFS_OF_A_GAP)

    def on_progress(self) -> None:
        """Reset the failures after a success."""
        self.backoff.reset()
        self.failing_since = None

    def loss_reason(self, state: ContainerState) -> str:
        """Return why the rest of the log is lost, or "" while a retry may help."""
        error = self.error
        if error is None:
            return ""
        if error.status == 404 and NO_POD.search(error.message):
            return "the pod is gone"
        if state is ContainerState.RUNNING and (error.retryable or NOT_STARTED in error.message):
            return ""
        if self.failing_since is None:
            self.failing_since = now()
        limit = self.timings.give_up if error.retryable and not self.container.log_ended else self.timings.refused
        return error.message if now() - self.failing_since >= limit else ""

    async def pause(self, state: ContainerState) -> None:
        """Wait before the next request: for Retry-After, else for the back-off or a new state, whichever is first."""
        if self.error and self.backoff.failures == 0:
            log.warning("the log cannot be read and is retried", pod=self.target.pod, error=self.error.message)
        delay = self.backoff.next()
        if self.error and self.error.retry_after is not None:
            await asyncio.sleep(min(self.error.retry_after, self.timings.longest_retry_after))
            return
        try:
            async with asyncio.timeout(delay):
                await self.container.wait_while(state)
        except TimeoutError:
            return


def now() -> float:
    return asyncio.get_running_loop().time()
