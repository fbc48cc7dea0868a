"""The events of one session that the scheduler has not stored yet: their numbers, and the limit of their bytes.

A session outbox lives from the session's first event until `close`. Numbers are contiguous from 1. The same number
always stands for the same event. Chunks of log are therefore joined only before any stream has sent them.
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
    from collections.abc import AsyncGenerator, AsyncIterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event
    from agent.telemetry.metrics import Metrics

# Maximum number of bytes of log in one event. The contract (LogChunk.data) names the same limit.
MAX_JOINED = 256 << 10
# Number of bytes that each event counts for in addition to its log. This bounds the memory of many small events.
OVERHEAD = 256


class SharedOutbox(Protocol):
    """The parts of `Outbox` that a session outbox uses. `Outbox` documents each method."""

    window: int
    metrics: Metrics
    stores_references: bool
    stores_packs: bool

    def schedule(self, session: SessionOutbox) -> None: ...

    def remove(self, session: SessionOutbox) -> None: ...

    def count_events(self, change: int) -> None: ...

    def count_bytes(self, change: int) -> None: ...

    def would_exceed_total(self, cost: int) -> bool: ...

    def wait_for_room(self, session: SessionOutbox) -> None: ...

    def stop_waiting_for_room(self, session: SessionOutbox) -> None: ...

    async def upload(self, key: Key, parts: AsyncIterator[FilePart]) -> None: ...

    def fetch(self, key: Key, number: int) -> AsyncGenerator[FilePart, None]: ...


@dataclass(slots=True)
class KeptEvent:
    """An event that is not yet acknowledged. `more` holds later chunks of log, which are sent as part of this event."""

    seq: int
    event: Event
    cost: int
    more: list[bytes] = field(default_factory=list)
    size: int = 0

    def can_join(self, chunk: LogChunk) -> bool:
        """Whether `join` can append a chunk of log to this event.

        A chunk without a cursor is not joined to a chunk with a cursor. The joined event would have no cursor, and the
        exact resume point would be lost.
        """
        last = self.event
        return (
            isinstance(last, LogChunk)
            and (last.source, last.service) == (chunk.source, chunk.service)
            and (last.cursor is None or chunk.cursor is not None)
            and self.size + len(chunk.data) <= MAX_JOINED
        )

    def join(self, chunk: LogChunk) -> None:
        """Append a chunk for which `can_join` is true."""
        assert isinstance(self.event, LogChunk)  # noqa: S101 - `can_join` has checked the type
        self.event = replace(self.event, cursor=chunk.cursor, service_cursor=chunk.service_cursor)
        self.more.append(chunk.data)
        self.size += len(chunk.data)
        self.cost += len(chunk.data)

    def seal(self) -> None:
        """Make one event of the joined chunks. Called once, before the first send, so that bytes are copied once."""
        if self.more and isinstance(self.event, LogChunk):
            self.event = replace(self.event, data=b"".join((self.event.data, *self.more)))
            self.more.clear()


def log_size(event: Event) -> int:
    """Return the bytes of log in an event. All other events are small and count as `OVERHEAD`."""
    return len(event.data) if isinstance(event, LogChunk) else 0


class SessionOutbox:
    """Implements `execution.ports.SessionSink`. Several tasks of one session can call `send` at the same time.

    `asked_at` is the time (`time.monotonic`) when the session asked for the resume point, None when no answer is due.
    """

    def __init__(self, key: Key, outbox: SharedOutbox, *, adopted: bool) -> None:
        self.key = key
        self.outbox = outbox
        self.adopted = adopted
        self.must_ask_to_resume = adopted
        self.paused = adopted
        self.asked_at: float | None = None
        self.has_turn = False
        self.is_closed = False
        self.highest_seq = 0
        self.highest_sent = 0  # highest number that any stream has sent so far
        self.acknowledged = 0
        self.used = 0
        self.unsent: deque[KeptEvent] = deque()
        self.unacknowledged: deque[KeptEvent] = deque()
        self.send_lock = asyncio.Lock()
        self.room = asyncio.Event()
        self.all_stored = asyncio.Event()
        self.all_stored.set()

    # ---- methods that the session calls

    async def send(self, event: Event) -> None:
        """Add an event. Waits while the window of this session or the window of all sessions is full.

        After `close`, the event is dropped.
        """
        size = log_size(event)
        # This lock serves its callers in the order in which they arrive, so events keep their order.
        async with self.send_lock:
            try:
                while self.must_wait(size + OVERHEAD):
                    self.room.clear()
                    await self.room.wait()
                if not self.is_closed:
                    self.append(event, size)
            finally:
                self.outbox.stop_waiting_for_room(self)

    async def wait_until_stored(self) -> None:
        """Wait until the scheduler has acknowledged every event, or until `close`."""
        await self.all_stored.wait()

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Wait for a connection and send files over it. The caller sets a deadline.

        Raises:
            SchedulerError: the upload broke. The caller starts again from the first file.
            Exception: whatever `parts` raises.
        """
        await self.outbox.upload(self.key, parts)

    @property
    def stores_references(self) -> bool:
        """Return whether the scheduler stores files that are in an object store by their names."""
        return self.outbox.stores_references

    @property
    def stores_packs(self) -> bool:
        """Return whether the scheduler stores the place of a file within an object."""
        return self.outbox.stores_packs

    def fetch(self, number: int) -> AsyncGenerator[FilePart, None]:
        """Wait for a connection and yield the parts of an input's files. The caller sets a deadline.

        Raises:
            InputMissing: the scheduler no longer stores a file.
            SchedulerError: the call broke. The caller starts again from the first file.
        """
        return self.outbox.fetch(self.key, number)

    def restart(self, seq: int, *, keep: bool = False, notice: LogChunk | None = None) -> None:
        """Drop the kept events and number the next event `seq` + 1.

        Used after a state loss of the scheduler, and at the adoption of a session. If `keep` is set, the kept events
        are not dropped. If there is a `notice`, it gets the first new number, and the kept events get the next numbers.
        """
        kept = [*self.unacknowledged, *self.unsent] if keep else []
        self.drop_events()
        self.acknowledged = self.highest_sent = self.highest_seq = seq
        self.adopted = self.must_ask_to_resume = self.paused = False
        self.asked_at = None
        if notice is not None:
            self.append(notice, log_size(notice))
        for each in kept:
            each.seal()
            self.append(each.event, log_size(each.event))
        self.wake_tasks()

    def close(self) -> None:
        """Drop all events and end all waits. The session sends nothing more."""
        self.is_closed = True
        self.drop_events()
        self.all_stored.set()
        self.outbox.remove(self)

    # ---- methods that the outbox calls

    @property
    def has_something(self) -> bool:
        """Whether an event, or the question for the resume point, can be sent now."""
        return not self.is_closed and (self.must_ask_to_resume or (not self.paused and bool(self.unsent)))

    def ask_to_resume(self) -> SessionState:
        """Pause the session and return the message that asks the scheduler for the resume point."""
        self.must_ask_to_resume = False
        self.paused = True
        self.asked_at = time.monotonic()
        return SessionState(self.key, 0 if self.adopted else self.highest_seq, self.adopted)

    def take(self) -> KeptEvent:
        """Return the first unsent event and make it unacknowledged."""
        kept = self.unsent.popleft()
        kept.seal()
        self.unacknowledged.append(kept)
        if kept.seq > self.highest_sent:
            self.highest_sent = kept.seq
            if isinstance(kept.event, LogChunk):
                self.outbox.metrics.log_bytes.inc(len(kept.event.data))
        return kept

    def acknowledge(self, seq: int) -> None:
        """Drop the events up to number `seq`, which was sent before."""
        before = len(self.unacknowledged) + len(self.unsent)
        for events in (self.unacknowledged, self.unsent):
            while events and events[0].seq <= seq:
                self.count_bytes(-events.popleft().cost)
        self.acknowledged = seq
        self.outbox.count_events(len(self.unacknowledged) + len(self.unsent) - before)
        # Only an acknowledgement sets `all_stored`. `drop_events` empties the queues too, but the scheduler has not
        # stored the dropped events.
        if not self.unacknowledged and not self.unsent:
            self.all_stored.set()
        self.wake_tasks()

    def resume(self, seq: int) -> None:
        """Continue after `seq`, a number between the last acknowledged and the highest sent number."""
        self.reset()
        self.paused = False
        self.asked_at = None
        self.acknowledge(seq)

    def pause(self) -> None:
        """Send nothing until `restart` or until the answer to the next registration."""
        self.paused = True
        self.asked_at = None

    def resume_without_answer(self) -> None:
        """Continue although the scheduler has sent no resume point.

        For an adopted session, ask for the resume point again.
        """
        self.asked_at = None
        self.must_ask_to_resume = self.paused = self.adopted
        self.wake_tasks()

    def reset(self) -> None:
        """Make every unacknowledged event unsent again."""
        self.unsent.extendleft(reversed(self.unacknowledged))
        self.unacknowledged.clear()

    # ---- internal methods

    def must_wait(self, cost: int) -> bool:
        """Whether an event of `cost` bytes must wait for free bytes in a window.

        An event never waits if the session keeps no other event.
        """
        if self.is_closed or self.used == 0:
            return False
        if self.used + cost > self.outbox.window:
            # This session waits for its own window, so it must not delay other sessions in the queue for the window
            # that all sessions share.
            self.outbox.stop_waiting_for_room(self)
            return True
        if not self.outbox.would_exceed_total(cost):
            return False
        self.outbox.wait_for_room(self)
        return True

    def count_bytes(self, change: int) -> None:
        """Add `change` to the number of bytes that this session keeps, and that all sessions keep."""
        self.used += change
        self.outbox.count_bytes(change)

    def append(self, event: Event, size: int) -> None:
        """Keep an event under the next number, or join it to the last event."""
        last = self.unsent[-1] if self.unsent and self.unsent[-1].seq > self.highest_sent else None
        if last is not None and isinstance(event, LogChunk) and last.can_join(event):
            last.join(event)
            self.count_bytes(size)
        else:
            self.highest_seq += 1
            self.unsent.append(KeptEvent(self.highest_seq, event, size + OVERHEAD, size=size))
            self.count_bytes(size + OVERHEAD)
            self.outbox.count_events(1)
        self.all_stored.clear()
        self.outbox.schedule(self)

    def drop_events(self) -> None:
        """Drop all kept events without waiting for acknowledgements."""
        self.outbox.count_events(-len(self.unacknowledged) - len(self.unsent))
        self.unacknowledged.clear()
        self.unsent.clear()
        self.count_bytes(-self.used)
        self.wake_tasks()

    def wake_tasks(self) -> None:
        """Wake the tasks that wait in `send`, and the writer of the stream."""
        self.room.set()
        self.outbox.schedule(self)
