"""The way out of one session: its numbers, its window and what is kept in it.

Lives from the session's first event until `close`. Numbers are contiguous from 1; the same number is always the same
event, so that pieces of log are joined only while no stream has ever seen them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from agent.domain.events import LogChunk
from agent.domain.session_state import SessionState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event
    from agent.telemetry.metrics import Metrics

MAX_JOINED = 64 << 10
OVERHEAD = 256


class Owner(Protocol):
    """What an outlet needs of its outbox."""

    window: int
    metrics: Metrics

    def ready(self, outlet: Outlet) -> None:
        """Take note that the outlet may have something to say."""

    def closed(self, outlet: Outlet) -> None:
        """Forget the outlet."""

    def kept(self, change: int) -> None:
        """Count events that are kept."""

    def charge(self, change: int) -> None:
        """Count what is kept of all sessions together."""

    def is_full_for(self, cost: int) -> bool:
        """Whether all sessions together keep too much for that much more."""

    def wait_in_line(self, outlet: Outlet) -> None:
        """Set the outlet's `room` when it is its turn to look for room in the whole."""

    def leave_line(self, outlet: Outlet) -> None:
        """Let the next one look for room."""

    async def upload(self, key: Key, parts: AsyncIterator[FilePart]) -> None:
        """Send files beside the stream."""


@dataclass(slots=True)
class Entry:
    """A kept event. `more` is log that was joined to it; it is put together once, when the event is first sent."""

    seq: int
    event: Event
    cost: int
    more: list[bytes] = field(default_factory=list)
    size: int = 0

    def joins(self, chunk: LogChunk) -> bool:
        """Whether a chunk continues this one.

        A chunk without a cursor is not joined to one that has one: the place where the log can be read again exactly
        would be lost.
        """
        last = self.event
        return (
            isinstance(last, LogChunk)
            and last.source is chunk.source
            and (last.cursor is None or chunk.cursor is not None)
            and self.size + len(chunk.data) <= MAX_JOINED
        )

    def join(self, chunk: LogChunk) -> None:
        """Append a chunk."""
        assert isinstance(self.event, LogChunk)  # noqa: S101 - `joins` has seen it
        self.event = replace(self.event, cursor=chunk.cursor)
        self.more.append(chunk.data)
        self.size += len(chunk.data)
        self.cost += len(chunk.data)

    def seal(self) -> None:
        """Put the pieces together."""
        if self.more and isinstance(self.event, LogChunk):
            self.event = replace(self.event, data=b"".join((self.event.data, *self.more)))
            self.more.clear()


def size_of(event: Event) -> int:
    """Return the bytes of an event that are worth counting."""
    return len(event.data) if isinstance(event, LogChunk) else 0


class Outlet:
    """Implements `execution.event_sink.SessionSink`; several tasks of one session may send."""

    def __init__(self, key: Key, owner: Owner, *, adopted: bool) -> None:
        self.key = key
        self.owner = owner
        self.adopted = adopted
        self.unnamed = adopted
        self.held = adopted
        self.held_since: float | None = None
        self.in_turn = False
        self.is_closed = False
        self.last = 0  # highest number given
        self.handed = 0  # highest number that any stream has seen
        self.acknowledged = 0
        self.used = 0
        self.unsent: deque[Entry] = deque()
        self.unacknowledged: deque[Entry] = deque()
        self.queue = asyncio.Lock()
        self.room = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()

    # ---- for the session

    async def send(self, event: Event) -> None:
        """Take the event into the window, waiting while it is full; dropped when the outlet is closed."""
        size = size_of(event)
        async with self.queue:  # senders that wait keep their order
            try:
                while self.is_crowded(size + OVERHEAD):
                    self.room.clear()
                    await self.room.wait()
                if not self.is_closed:
                    self.append(event, size)
            finally:
                self.owner.leave_line(self)

    async def wait_until_stored(self) -> None:
        """Wait until everything that was sent is acknowledged, or the outlet is closed."""
        await self.empty.wait()

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Send files beside the stream; waits for a connection, so that the caller sets a deadline.

        Raises:
            SchedulerError: it broke; the caller starts again from the first file.
            Exception: whatever `parts` raises.
        """
        await self.owner.upload(self.key, parts)

    def restart(self, seq: int, *, keep: bool = False, notice: LogChunk | None = None) -> None:
        """Number from `seq` + 1 on, for a scheduler that lost its memory or knows more than this agent.

        What is kept is forgotten, or with `keep` numbered anew, behind the notice.
        """
        kept = [*self.unacknowledged, *self.unsent] if keep else []
        self.forget()
        self.acknowledged = self.handed = self.last = seq
        self.adopted = self.unnamed = self.held = False
        self.held_since = None
        if notice is not None:
            self.append(notice, size_of(notice))
        for entry in kept:
            entry.seal()
            self.append(entry.event, size_of(entry.event))
        self.announce()

    def close(self) -> None:
        """Forget the session: nothing more will be sent of it, and nobody waits for it any longer."""
        self.is_closed = True
        self.forget()
        self.empty.set()
        self.owner.closed(self)

    # ---- for the outbox

    @property
    def has_something(self) -> bool:
        """Whether there is something to say now."""
        return not self.is_closed and (self.unnamed or (not self.held and bool(self.unsent)))

    def name(self) -> SessionState:
        """Return what the scheduler is told of this session, and hold it until the scheduler has answered."""
        self.unnamed = False
        self.held = True
        self.held_since = time.monotonic()
        return SessionState(self.key, 0 if self.adopted else self.last, self.adopted)

    def take(self) -> Entry:
        """Return the first unsent event, sent from now on."""
        entry = self.unsent.popleft()
        entry.seal()
        self.unacknowledged.append(entry)
        if entry.seq > self.handed:
            self.handed = entry.seq
            if isinstance(entry.event, LogChunk):
                self.owner.metrics.log_bytes.inc(len(entry.event.data))
        return entry

    def acknowledge(self, seq: int) -> None:
        """Forget the events up to a number that was handed out."""
        before = len(self.unacknowledged) + len(self.unsent)
        for entries in (self.unacknowledged, self.unsent):
            while entries and entries[0].seq <= seq:
                self.charge(-entries.popleft().cost)
        self.acknowledged = seq
        self.owner.kept(len(self.unacknowledged) + len(self.unsent) - before)
        # Here and in `close` only: forgetting what was never acknowledged settles nothing.
        if not self.unacknowledged and not self.unsent:
            self.empty.set()
        self.announce()

    def resume(self, seq: int) -> None:
        """Go on behind a number that was handed out and is not below what is acknowledged."""
        self.reset()
        self.held = False
        self.held_since = None
        self.acknowledge(seq)

    def hold(self) -> None:
        """Send nothing until `restart`, or until the next registration is answered."""
        self.held = True
        self.held_since = None

    def unanswered(self) -> None:
        """Go on without an answer from the scheduler; what was adopted is named again."""
        self.held_since = None
        self.unnamed = self.held = self.adopted
        self.announce()

    def reset(self) -> None:
        """Put what is unacknowledged back to unsent."""
        self.unsent.extendleft(reversed(self.unacknowledged))
        self.unacknowledged.clear()

    # ---- inside

    def is_crowded(self, cost: int) -> bool:
        """Whether an event has to wait; the first of a session never does, so that each comes forward."""
        if self.is_closed or self.used == 0:
            return False
        if self.used + cost > self.owner.window:
            self.owner.leave_line(self)  # whoever waits for its own room holds up nobody
            return True
        if not self.owner.is_full_for(cost):
            return False
        self.owner.wait_in_line(self)
        return True

    def charge(self, change: int) -> None:
        """Count bytes that are kept."""
        self.used += change
        self.owner.charge(change)

    def append(self, event: Event, size: int) -> None:
        """Keep an event under the next number, or join it to the last one."""
        last = self.unsent[-1] if self.unsent and self.unsent[-1].seq > self.handed else None
        if last is not None and isinstance(event, LogChunk) and last.joins(event):
            last.join(event)
            self.charge(size)
        else:
            self.last += 1
            self.unsent.append(Entry(self.last, event, size + OVERHEAD, size=size))
            self.charge(size + OVERHEAD)
            self.owner.kept(1)
        self.empty.clear()
        self.owner.ready(self)

    def forget(self) -> None:
        """Drop what is kept."""
        self.owner.kept(-len(self.unacknowledged) - len(self.unsent))
        self.unacknowledged.clear()
        self.unsent.clear()
        self.charge(-self.used)
        self.announce()

    def announce(self) -> None:
        """Tell everybody who may go on."""
        self.room.set()
        self.owner.ready(self)
