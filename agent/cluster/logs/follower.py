"""Read the log of the commands to its end, over any number of broken connections.

Container `helper` writes the log into a file, and copies it to its own stdout in frames. Each frame names its position
in the file. `follow` reads the stdout of the helper like any pod's log, because that is the cheapest way and brings a
line within milliseconds. Only the file is certainly complete. An exec reads the file in these cases:

* If a frame begins after the expected position, bytes are missing. An exec reads them.
* If the log grows fast, or the stdout is far behind the file, an exec reads the log to its end.
* If no bytes arrive although the commands have ended, an exec reads the rest.

The end of a response proves nothing, because API servers, load balancers and log rotation all end streams without an
error. Silence proves nothing either, because half-open connections are silent. So the stream is opened again at the
expected position, and after a long silence a plain read (a request without `follow`) shows whether the stream works.
The log ends with the last frame, or with the end of the file, which the helper writes when no process holds the log
open any more.

After the end of the helper only the frames on the node are left. Bytes that are missing there become a `LogGap` with
their exact number. No `ClusterError` leaves this module. A log that cannot be read becomes a `LogLost`. It does not
change the outcome of the action.
"""

from __future__ import annotations

import math
from contextlib import aclosing
from typing import TYPE_CHECKING

import aiohttp
import structlog

from agent.cluster.logs.blocks import Reached
from agent.cluster.logs.errand import Errand
from agent.cluster.logs.failures import Failures, pod_is_gone
from agent.cluster.logs.frames import Frame, FrameReader
from agent.cluster.logs.request import LogRequest, Speed, now
from agent.cluster.logs.source import DEFAULT_TIMINGS, LogSource, LogState, Timings, Way, change_of
from agent.domain.errors import ClusterError
from agent.domain.observations import LogEnd, LogGap, LogItem, LogLost, LogPiece

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef

log = structlog.get_logger(__name__)

# Number of missing bytes, and number of gaps in one stream, from which on the log is read from its file to its end.
MOST_MISSING, MOST_GAPS = 256 * 1024, 5
# Seconds that are added to the age of the oldest line that a reopened stream brings.
OVERLAP = 5


async def follow(
    client: Client, target: ContainerRef, position: int, source: LogSource, key: int, timings: Timings = DEFAULT_TIMINGS
) -> AsyncGenerator[LogItem, None]:
    """Yield the log from byte `position` to its end. A caller that leaves early must use `aclosing`.

    `target` is container `helper`, `key` is the key of the checksums in its frames.
    """
    follower = LogFollower(client, target, position, source, key, timings)
    async with aclosing(follower.items()) as items:
        async for item in items:
            yield item


class LogFollower:
    """The state of one call of `follow`: the position, the way of reading, and the failures since the last success."""

    def __init__(
        self, client: Client, target: ContainerRef, position: int, source: LogSource, key: int, timings: Timings
    ) -> None:
        self.client = client
        self.target = target
        self.position = position
        self.source = source
        self.key = key
        self.timings = timings
        # Whether the log is read from its file until its end.
        self.from_file = False
        # Whether the file can be read, as far as known.
        self.file_readable = True
        # The time of the event loop up to which everything that the helper wrote was read, None if unknown.
        self.read_until: float | None = None
        self.opened = 0
        self.gaps = 0
        self.failures = Failures(target.pod, source, timings)
        self.error: ClusterError | None = None
        # When the file was first seen empty after the end of the commands.
        self.empty_since: float | None = None
        self.complete = False

    async def items(self) -> AsyncGenerator[LogItem, None]:
        """Yield the items of the log. Repeat requests until the log ends."""
        while not self.complete:
            state = self.source.state
            if state is LogState.WAITING:
                await self.source.wait_while(state)
                continue
            if state is LogState.GONE:
                yield LogLost("the pod is gone")
                return
            if state is LogState.UNUSED:
                yield LogEnd(0)
                return
            way = self.way(state)
            async with aclosing(self.attempt(way)) as items:
                async for item in items:
                    yield item
            if self.complete:
                return
            if self.error and self.failures.is_final(self.error, state, way):
                if way not in (Way.FILE, Way.CATCH_UP):
                    yield LogLost("the pod is gone" if pod_is_gone(self.error) else self.error.message)
                    return
                self.leave_file(self.error)
            elif self.error or way is self.way(self.source.state):
                await self.failures.pause(state, self.error)

    def leave_file(self, error: ClusterError) -> None:
        """Read the helper's stdout from now on, because the log file cannot be read."""
        log.warning("the file of a log cannot be read", pod=self.target.pod, error=error.message)
        self.from_file = self.file_readable = False
        self.failures.on_progress()

    def way(self, state: LogState) -> Way:
        """Return how the next part of the log is read."""
        if state is LogState.ABANDONED:
            return Way.NODE
        if self.from_file:
            return Way.FILE
        if self.position and self.read_until is None and self.file_readable:
            # The helper may have written the next bytes long ago. A new stream would not bring bytes that were written
            # before the stream began.
            return Way.CATCH_UP
        return Way.STREAM

    async def attempt(self, way: Way) -> AsyncGenerator[LogItem, None]:
        """Read the log in one of the ways until its connection ends. Sets `error` if a request fails."""
        began = now()
        self.error = None
        match way:
            case Way.NODE:
                items = self.node()
            case Way.STREAM:
                items = self.stream()
            case Way.FILE | Way.CATCH_UP:
                items = self.file(follow=way is Way.FILE and not self.may_stay_empty)
        try:
            async with aclosing(items):
                async for item in items:
                    self.failures.on_progress()
                    yield item
        except ClusterError as error:
            self.error = error
        else:
            if now() - began >= self.timings.steady:
                self.failures.on_progress()

    # ---- the pod's log

    async def stream(self) -> AsyncGenerator[LogItem, None]:
        """Read the helper's stdout until the stream ends, is dead, or the log must be read in another way."""
        if self.opened:
            self.client.metrics.log_reopened.inc()
        self.opened += 1
        self.gaps = 0
        reader, speed = FrameReader(self.key), Speed(self.timings.window)
        silence = self.timings.probe
        state = self.source.state
        async with self.request(follow=True) as body, change_of(self.source, state) as changed:
            while True:
                open_ = state is LogState.OPEN and not changed.done()
                wait = min(silence, self.timings.torn) if reader.pending else silence
                block = await body.block(changed, wait if open_ else self.timings.settle)
                self.read_until = body.fresh_at or self.read_until
                if block:
                    frames, silence = reader.feed(block), self.timings.probe
                elif block is not None:
                    body.check()
                    return
                elif not open_:
                    self.on_silent_end()
                    return
                elif changed.done():
                    continue
                elif reader.pending:
                    frames = reader.resync()
                else:
                    position = self.position
                    async with aclosing(self.rest()) as items:
                        async for item in items:
                            yield item
                    if self.complete or self.position != position:
                        log.info("a log stream was dead and is opened again", pod=self.target.pod)
                        return
                    silence = min(2 * silence, self.timings.longest_probe)
                    continue
                async with aclosing(self.take(frames)) as items:
                    async for item in items:
                        yield item
                self.from_file = self.from_file or (self.file_readable and speed.is_fast(block))
                if self.complete or self.from_file:
                    return
                self.judge(reader)

    def on_silent_end(self) -> None:
        """Read the rest of the log from its file, because the stream does not bring the end of the log.

        Raises:
            ClusterError: the file cannot be read.
        """
        if self.source.state is not LogState.ENDING:
            return
        if not self.file_readable:
            raise ClusterError("the end of the log did not arrive", retryable=True)
        self.from_file = True

    def judge(self, reader: FrameReader) -> None:
        """Stop reading the stream if too many of its frames in a row have wrong checksums.

        Raises:
            ClusterError: the stream is unusable. The log is then read from its file, if the file can be read.
        """
        if reader.unusable:
            self.from_file = self.file_readable
            raise ClusterError("the log cannot be read: its frames are damaged", retryable=True)

    async def rest(self) -> AsyncGenerator[LogItem, None]:
        """Read the helper's stdout as the node has it now, by one request without `follow`. Yield only what is new."""
        began = now()
        reader = FrameReader(self.key)
        async with self.request(follow=False) as body:
            while block := await body.read():
                async with aclosing(self.take(reader.feed(block))) as items:
                    async for item in items:
                        yield item
                if self.complete or self.from_file:
                    return
        body.check()
        async with aclosing(self.take(reader.resync())) as items:
            async for item in items:
                yield item
        self.read_until = began

    async def node(self) -> AsyncGenerator[LogItem, None]:
        """Read what the node has of the stdout of a helper that has ended."""
        async with aclosing(self.rest()) as items:
            async for item in items:
                yield item
        if not self.complete:
            self.complete = True
            yield LogLost("container helper ended before the commands did; what it had not copied is lost")

    async def take(self, frames: list[Frame]) -> AsyncGenerator[LogItem, None]:
        """Yield what is new in the frames, and what is missing before them."""
        for frame in frames:
            if frame.offset > self.position:
                self.gaps += 1
                if self.file_is_better(frame.offset - self.position):
                    self.from_file = True
                    return
                async with aclosing(self.fill(frame.offset)) as items:
                    async for item in items:
                        yield item
            if self.complete:
                return
            if frame.end > self.position:
                at, self.position = self.position, frame.end
                yield LogPiece(frame.data[at - frame.offset :], at)
            if frame.dropped is not None:
                self.complete = True
                yield LogEnd(frame.dropped)

    def file_is_better(self, missing: int) -> bool:
        """Whether to read the rest of the log from the helper's log file. The helper's stdout lacks `missing` bytes."""
        readable = self.file_readable and self.source.state in (LogState.OPEN, LogState.ENDING)
        return readable and (missing > MOST_MISSING or self.gaps > MOST_GAPS)

    async def fill(self, until: int) -> AsyncGenerator[LogItem, None]:
        """Yield the bytes up to the position `until`, from the file. Yield a `LogGap` if the file cannot be read."""
        limit = now() + (self.timings.give_up if self.file_readable else 0)
        refused = now() + self.timings.refused
        while self.position < until and not self.complete:
            error: ClusterError | None = None
            state = self.source.state
            if state in (LogState.OPEN, LogState.ENDING):
                try:
                    async with aclosing(self.file(follow=False)) as items:
                        async for item in items:
                            yield item
                    self.file_readable = True
                    continue
                except ClusterError as failure:
                    error = failure
            if error is None or now() >= (limit if error.retryable else min(limit, refused)):
                self.file_readable = False
                at, self.position = self.position, until
                yield LogGap(at, until - at)
                return
            await self.failures.pause(state, error)

    # ---- the log's file

    @property
    def may_stay_empty(self) -> bool:
        """Whether container `action` has ended without a byte in the log, as far as known.

        If its PID 1 was not executed, or ended before it opened the log, the helper sees no end of the log.
        """
        return self.source.state is LogState.ENDING and self.position == 0

    def stays_empty(self) -> bool:
        """Whether the file has been empty for long enough, although the container has ended."""
        self.empty_since = self.empty_since or now()
        return now() - self.empty_since >= self.timings.settle

    async def file(self, *, follow: bool) -> AsyncGenerator[LogItem, None]:
        """Read the log from its file: to its end (`follow`), or to its present end.

        Raises:
            ClusterError: the exec failed, or broke off.
        """
        began = now()
        errand = Errand(self.client, self.target, self.position, follow=follow)
        async with errand, aclosing(errand.items()) as items:
            async for item in items:
                if isinstance(item, Reached):
                    self.read_until = began
                    if item.ended:
                        self.complete = True
                        yield LogEnd(item.dropped)
                    elif self.may_stay_empty and self.stays_empty():
                        self.complete = True
                        yield LogEnd(0)
                    return
                at, self.position = self.position, self.position + len(item)
                yield LogPiece(item, at)

    # ---- requests

    def request(self, *, follow: bool) -> LogRequest:
        """Return a request for the helper's stdout, from the last line on that was certainly read."""
        since = None if self.read_until is None else math.ceil(now() - self.read_until) + OVERLAP
        silence = None if follow else self.timings.read
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.timings.connect, sock_read=silence)
        return LogRequest(self.client, self.target, since=since, follow=follow, timeout=timeout)
