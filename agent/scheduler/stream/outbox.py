"""Events on their way to the scheduler: numbered, kept until acknowledged, and sent again after a reconnect.

One `Outbox` lives as long as the process, and outlives every stream. Each session has a `SessionOutbox` in it, from its
first event until its `close`. An event is *unsent* until the writer of the stream takes it. Then it is *unacknowledged*
until the scheduler has stored it. The window of a session limits the bytes of its unsent and unacknowledged events. A
second window limits these bytes of all sessions together. While one of the windows is full, `send` waits, so that the
agent reads no log faster than the scheduler stores it. Sessions take turns, one event each, so that a session with much
output delays another session by one event only.

This module does not use gRPC. The writer of the stream calls `take`. `wake` is set when `take` possibly has an item.
After each registration, every session in the registration is *paused* until the scheduler has sent its resume point.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import SchedulerError
from agent.domain.events import LogChunk, Source
from agent.domain.session_state import SessionState
from agent.scheduler.stream.session_outbox import SessionOutbox

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event
    from agent.domain.session_state import Resume
    from agent.telemetry.metrics import Metrics

    Uploader = Callable[[Key, AsyncIterator[FilePart]], Coroutine[object, object, None]]
    Fetcher = Callable[[Key, int], AsyncGenerator[FilePart, None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One event to send, with its number in the session."""

    key: Key
    seq: int
    event: Event


class Outbox:
    """The events of all sessions of this agent. Implements `execution.ports.EventSink`.

    `on_state_loss(key, resume)` is called when the scheduler asks for events that it had acknowledged before, because
    it lost its state. The session then calls `SessionOutbox.restart(resume.seq)` and sends its events again. Until
    `restart`, the session stays paused. If the agent only reports why an action got no session, `on_state_loss` returns
    False. The outbox then gives the kept events new numbers, and puts a notice about the lost events before them.

    `stores_references`: the scheduler of the last registration stores files of an object store by their names.
    `stores_packs`: it also stores the place of a file within an object.
    `ignored` counts, by kind, the messages of the scheduler that fit no event or session.
    """

    def __init__(
        self,
        window: int,
        metrics: Metrics,
        total: int = 64 << 20,
        *,
        on_state_loss: Callable[[Key, Resume], bool] = lambda _key, _resume: False,
    ) -> None:
        self.window = window
        self.total = total
        self.used = 0
        self.waiting_for_room: dict[SessionOutbox, None] = {}
        self.metrics = metrics
        self.wake = asyncio.Event()
        self.ignored: Counter[str] = Counter()
        self.on_state_loss = on_state_loss
        self.uploader: Uploader | None = None
        self.fetcher: Fetcher | None = None
        self.stores_references = self.stores_packs = False
        self.session_outboxes: dict[tuple[str, int], SessionOutbox] = {}
        self.turns: deque[SessionOutbox] = deque()

    # ---- methods that sessions call

    def open(self, key: Key, *, adopted: bool = False) -> SessionOutbox:
        """Return the new outbox of a session. An outbox of the same attempt with the same or a lower claim is replaced.

        The scheduler is asked for the resume point of an adopted session. The events of an adopted session wait for the
        resume point.

        Raises:
            ValueError: a session with a higher claim has an outbox.
        """
        older = self.session_outboxes.get(key.attempt_key)
        if older is not None:
            if older.key.claim > key.claim:
                raise ValueError(f"{key} is superseded by claim {older.key.claim}")
            older.close()
        session = SessionOutbox(key, self, adopted=adopted)
        self.session_outboxes[key.attempt_key] = session
        if adopted:
            self.schedule(session)
        return session

    # ---- methods that session outboxes call

    def schedule(self, session: SessionOutbox) -> None:
        """If a session has something to send, put the session into the queue from which `take` serves the sessions."""
        if not session.has_turn and session.has_something:
            session.has_turn = True
            self.turns.append(session)
        if session.has_turn:
            self.wake.set()

    def remove(self, session: SessionOutbox) -> None:
        """Remove a session that was closed."""
        if self.session_outboxes.get(session.key.attempt_key) is session:
            del self.session_outboxes[session.key.attempt_key]

    def count_events(self, change: int) -> None:
        """Add `change` to the metric of events that are kept."""
        self.metrics.events_unacknowledged.inc(change)

    def count_bytes(self, change: int) -> None:
        """Add `change` to the total number of bytes in the outboxes of all sessions."""
        self.used += change
        if change < 0:
            self.wake_next()

    def would_exceed_total(self, cost: int) -> bool:
        """Whether `cost` more bytes do not fit into the window of all sessions."""
        return self.used + cost > self.total

    def wait_for_room(self, session: SessionOutbox) -> None:
        """Put a session into the queue for free bytes in the window that all sessions share.

        When bytes are free, the event `room` of the first session in the queue is set.
        """
        self.waiting_for_room.setdefault(session)

    def stop_waiting_for_room(self, session: SessionOutbox) -> None:
        """Remove a session from the queue for free bytes in the shared window, and wake the next session."""
        if session in self.waiting_for_room:
            del self.waiting_for_room[session]
            self.wake_next()

    def wake_next(self) -> None:
        """Wake the first session in the queue for free bytes in the shared window.

        When this session has added its event, it wakes the next session. The sessions therefore wake one by one.
        """
        if self.waiting_for_room and self.used < self.total:
            next(iter(self.waiting_for_room)).room.set()

    async def upload(self, key: Key, parts: AsyncIterator[FilePart]) -> None:
        """Send files to the scheduler in a gRPC call of their own.

        Raises:
            SchedulerError: no connection exists, or the upload broke.
            Exception: whatever `parts` raises.
        """
        if self.uploader is None:
            raise SchedulerError("there is no connection to send files over")
        await self.uploader(key, parts)

    def fetch(self, key: Key, number: int) -> AsyncGenerator[FilePart, None]:
        """Yield the parts of the files of a session's input, in a gRPC call of its own.

        Raises:
            SchedulerError: no connection exists, or the call broke.
        """
        if self.fetcher is None:
            raise SchedulerError("there is no connection to receive files over")
        return self.fetcher(key, number)

    # ---- methods that the writer of the stream calls

    def take(self) -> Outgoing | SessionState | None:
        """Return the next item to send and count it as sent. Return None if nothing is ready.

        If the item is a `SessionState`, its message asks the scheduler for the resume point.
        """
        while self.turns:
            session = self.turns.popleft()
            session.has_turn = False
            if not session.has_something:
                continue
            if session.must_ask_to_resume:
                return session.ask_to_resume()
            kept = session.take()
            self.schedule(session)
            return Outgoing(session.key, kept.seq, kept.event)
        return None

    async def next(self) -> Outgoing | SessionState:
        """Wait for the next item and take it."""
        while True:
            self.wake.clear()
            if (item := self.take()) is not None:
                return item
            await self.wake.wait()

    # ---- methods that are called at the start of a stream

    def reset(self) -> None:
        """Make every unacknowledged event unsent again, because the stream that carried it has ended."""
        for session in self.session_outboxes.values():
            session.reset()

    def session_states(self) -> tuple[SessionState, ...]:
        """Return the state of every session, for the registration. Pause each session until the scheduler answers."""
        return tuple(session.ask_to_resume() for session in self.session_outboxes.values())

    def resume_unanswered(self, before: float) -> tuple[Key, ...]:
        """Resume sessions that have waited for a resume point since before the `time.monotonic` value `before`.

        Return the keys of these sessions. They continue after the last acknowledged event. An adopted session has no
        acknowledged event yet, so the agent asks the scheduler again.
        """
        late = [
            session
            for session in self.session_outboxes.values()
            if session.asked_at is not None and session.asked_at < before
        ]
        for session in late:
            session.resume_without_answer()
        return tuple(session.key for session in late)

    # ---- methods that the reader of the stream calls

    def ack(self, key: Key, seq: int) -> None:
        """Drop the events up to number `seq`, because the scheduler has stored them."""
        session = self.find(key)
        if session is None:
            return
        if seq > session.highest_sent:
            self.count_violation("acknowledged ahead", key, seq)
        elif seq <= session.acknowledged:
            self.ignored["acknowledged again"] += 1
        else:
            session.acknowledge(seq)

    def resume(self, resume: Resume) -> bool:
        """Continue a paused session with the event number `resume.seq` + 1.

        Returns False if the session is unknown, or if `on_state_loss` has started the session's restart.
        """
        session = self.find(resume.key)
        if session is None:
            return False
        if session.adopted:
            session.restart(resume.seq, keep=True)
        elif resume.seq > session.highest_sent:
            self.count_violation("resumed ahead", resume.key, resume.seq)
            session.resume_without_answer()
        elif resume.seq >= session.acknowledged:
            session.resume(resume.seq)
        else:
            return self.handle_state_loss(session, resume)
        return True

    def discard(self, key: Key) -> bool:
        """Close a session whose claim is not higher than the key's. Returns False if no such session exists."""
        session = self.session_outboxes.get(key.attempt_key)
        if session is None or session.key.claim > key.claim:
            self.ignored["unknown session"] += 1
            return False
        session.close()
        return True

    def handle_state_loss(self, session: SessionOutbox, resume: Resume) -> bool:
        """Handle a scheduler that asks for events that it had acknowledged.

        Returns whether the session is resumed now.
        """
        log.warning(
            "the scheduler lost acknowledged events",
            action=session.key.action_id,
            acknowledged=session.acknowledged,
            wanted=resume.seq + 1,
        )
        session.pause()
        if self.on_state_loss(session.key, resume):
            return False
        lost = session.acknowledged - resume.seq
        notice = f"[sealci] {lost} events before this were lost by the scheduler and cannot be sent again\n"
        session.restart(resume.seq, keep=True, notice=LogChunk(notice.encode(), None, Source.AGENT))
        return True

    def find(self, key: Key) -> SessionOutbox | None:
        """Return the outbox of the session with exactly this attempt and claim, or None without such a session."""
        session = self.session_outboxes.get(key.attempt_key)
        if session is None or session.key != key:
            self.ignored["unknown session"] += 1
            return None
        return session

    def count_violation(self, kind: str, key: Key, seq: int) -> None:
        """Count and log a message that only a faulty scheduler sends."""
        self.ignored[kind] += 1
        self.metrics.internal_errors.labels("stream").inc()
        log.warning("the scheduler names an event that was never sent", action=key.action_id, seq=seq, kind=kind)
