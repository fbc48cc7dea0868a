"""Events on their way to the scheduler: numbered, kept until acknowledged, sent again after a reconnect.

One `Outbox` lives as long as the process; it outlives every stream. Each session has an outlet in it, from its first
event to its `close`. An event is *unsent* until the writer of the stream takes it, then *unacknowledged* until the
scheduler has stored it. Both together are bounded by the window of the session, and those of all sessions by the total:
`send` waits while one is full, so that the log of an environment is read no faster than the scheduler stores it.
Sessions take turns, one event each, so that a flood in one delays the others by no more than one event.

Nothing here knows gRPC: `take` gives the next thing to say, `wake` is set when there may be one. After each
registration every session that was named is *held* until the scheduler has said where it goes on.
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
from agent.scheduler.stream.session_outbox import Outlet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event
    from agent.domain.session_state import Resume
    from agent.telemetry.metrics import Metrics

    Uploader = Callable[[Key, AsyncIterator[FilePart]], Coroutine[object, object, None]]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """The next event to send."""

    key: Key
    seq: int
    event: Event


class Outbox:
    """All outlets of this agent; implements `execution.event_sink.EventSink`.

    `on_forgotten(key, resume)` is called when the scheduler wants events again that it had acknowledged before: it has
    lost its memory. The session then calls `outlet.restart(resume.seq)` and tells its story again; its events are held
    until it does. When it returns False (a reply without a session) what is still kept is numbered anew, behind a
    notice of the gap.

    `ignored` counts, by kind, what the scheduler said that made no sense.
    """

    def __init__(self, window: int, metrics: Metrics, total: int = 64 << 20) -> None:
        self.window = window
        self.total = total
        self.used = 0
        self.line: dict[Outlet, None] = {}
        self.metrics = metrics
        self.wake = asyncio.Event()
        self.ignored: Counter[str] = Counter()
        self.on_forgotten: Callable[[Key, Resume], bool] = lambda key, resume: False
        self.uploader: Uploader | None = None
        self.outlets: dict[tuple[str, int], Outlet] = {}
        self.turns: deque[Outlet] = deque()

    # ---- for sessions

    def open(self, key: Key, *, adopted: bool = False) -> Outlet:
        """Return the outlet of a new session, in place of one with the same or a lower claim.

        An adopted session is named to the scheduler; its events wait for where to go on, and are numbered from there.

        Raises:
            ValueError: a session with a higher claim is here.
        """
        older = self.outlets.get(key.attempt_key)
        if older is not None:
            if older.key.claim > key.claim:
                raise ValueError(f"{key} is superseded by claim {older.key.claim}")
            older.close()
        outlet = Outlet(key, self, adopted=adopted)
        self.outlets[key.attempt_key] = outlet
        if adopted:
            self.ready(outlet)
        return outlet

    # ---- for outlets

    def ready(self, outlet: Outlet) -> None:
        """Give an outlet that has something to say its place in the turns."""
        if not outlet.in_turn and outlet.has_something:
            outlet.in_turn = True
            self.turns.append(outlet)
        if outlet.in_turn:
            self.wake.set()

    def closed(self, outlet: Outlet) -> None:
        """Forget an outlet."""
        if self.outlets.get(outlet.key.attempt_key) is outlet:
            del self.outlets[outlet.key.attempt_key]

    def kept(self, change: int) -> None:
        """Count events that are kept."""
        self.metrics.events_unacknowledged.inc(change)

    def charge(self, change: int) -> None:
        """Count what is kept of all sessions together."""
        self.used += change
        if change < 0:
            self.call_next()

    def is_full_for(self, cost: int) -> bool:
        """Whether all sessions together keep too much for that much more."""
        return self.used + cost > self.total

    def wait_in_line(self, outlet: Outlet) -> None:
        """Let the outlet be called in its turn."""
        self.line.setdefault(outlet)

    def leave_line(self, outlet: Outlet) -> None:
        """Let the next one look for room."""
        if outlet in self.line:
            del self.line[outlet]
            self.call_next()

    def call_next(self) -> None:
        """Wake the first in line; it calls the next when it has found its room, so that a crowd never wakes at once."""
        if self.line and self.used < self.total:
            next(iter(self.line)).room.set()

    async def upload(self, key: Key, parts: AsyncIterator[FilePart]) -> None:
        """Send files beside the stream."""
        if self.uploader is None:
            raise SchedulerError("there is no connection to send files over")
        await self.uploader(key, parts)

    # ---- for the writer of the stream

    def take(self) -> Outgoing | SessionState | None:
        """Return what is to be said next, and take it for sent; None when there is nothing."""
        while self.turns:
            outlet = self.turns.popleft()
            outlet.in_turn = False
            if not outlet.has_something:
                continue
            if outlet.unnamed:
                return outlet.name()
            entry = outlet.take()
            self.ready(outlet)
            return Outgoing(outlet.key, entry.seq, entry.event)
        return None

    async def next(self) -> Outgoing | SessionState:
        """Wait for what is to be said next."""
        while True:
            self.wake.clear()
            if (item := self.take()) is not None:
                return item
            await self.wake.wait()

    # ---- for the stream's beginning

    def reset(self) -> None:
        """Put all that is unacknowledged back to unsent: the stream that carried it is gone."""
        for outlet in self.outlets.values():
            outlet.reset()

    def sessions(self) -> tuple[SessionState, ...]:
        """Return every session for the registration; each is held until the scheduler has answered for it."""
        return tuple(outlet.name() for outlet in self.outlets.values())

    def unanswered(self, before: float) -> tuple[Key, ...]:
        """End the holding of sessions that were named before that `time.monotonic` and not answered for; return them.

        They go on behind what was acknowledged. An adopted one cannot, and is named again.
        """
        late = [outlet for outlet in self.outlets.values() if outlet.held_since is not None]
        late = [outlet for outlet in late if outlet.held_since is not None and outlet.held_since < before]
        for outlet in late:
            outlet.unanswered()
        return tuple(outlet.key for outlet in late)

    # ---- for the reader of the stream

    def ack(self, key: Key, seq: int) -> None:
        """Forget the events up to a number: the scheduler has stored them."""
        outlet = self.mine(key)
        if outlet is None:
            return
        if seq > outlet.handed:
            self.nonsense("acknowledged ahead", key, seq)
        elif seq <= outlet.acknowledged:
            self.ignored["acknowledged again"] += 1
        else:
            outlet.acknowledge(seq)

    def resume(self, resume: Resume) -> bool:
        """Send a named session from `resume.seq` + 1 on; False when it is unknown or was handed to `on_forgotten`."""
        outlet = self.mine(resume.key)
        if outlet is None:
            return False
        if outlet.adopted:
            outlet.restart(resume.seq, keep=True)
        elif resume.seq > outlet.handed:
            self.nonsense("resumed ahead", resume.key, resume.seq)
            outlet.unanswered()
        elif resume.seq >= outlet.acknowledged:
            outlet.resume(resume.seq)
        else:
            return self.forgotten(outlet, resume)
        return True

    def discard(self, key: Key) -> bool:
        """Forget a session whose claim is not higher than that of the key; False when there is none."""
        outlet = self.outlets.get(key.attempt_key)
        if outlet is None or outlet.key.claim > key.claim:
            self.ignored["unknown session"] += 1
            return False
        outlet.close()
        return True

    def forgotten(self, outlet: Outlet, resume: Resume) -> bool:
        """Deal with a scheduler that lost what it had acknowledged."""
        log.warning(
            "the scheduler has forgotten events",
            action=outlet.key.action_id,
            acknowledged=outlet.acknowledged,
            wanted=resume.seq + 1,
        )
        outlet.hold()
        if not self.on_forgotten(outlet.key, resume):
            lost = outlet.acknowledged - resume.seq
            notice = f"[sealci] {lost} events before this were lost by the scheduler and cannot be sent again\n"
            outlet.restart(resume.seq, keep=True, notice=LogChunk(notice.encode(), None, Source.AGENT))
            return True
        return False

    def mine(self, key: Key) -> Outlet | None:
        """Return the outlet of exactly this claim."""
        outlet = self.outlets.get(key.attempt_key)
        if outlet is None or outlet.key != key:
            self.ignored["unknown session"] += 1
            return None
        return outlet

    def nonsense(self, kind: str, key: Key, seq: int) -> None:
        """Count what only a faulty scheduler says."""
        self.ignored[kind] += 1
        self.metrics.internal_errors.labels("stream").inc()
        log.warning("the scheduler names an event that was never sent", action=key.action_id, seq=seq, kind=kind)
