"""Who runs what: actions go to agents with free slots, events come back, a lost agent's actions go on elsewhere.

Everything runs on one event loop, so that a decision is never half made; what depends on a decision (sending, acking)
is done when the store has it. An attempt is bound to the highest claim seen of it; older ones get Discard.
An agent that is gone has the resume grace to come back, or an heir to adopt its sessions; then the next attempt begins.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from agent.domain.actions import Cancel
from agent.domain.errors import Reason, Rejection, Stage
from agent.domain.events import Rejected
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Readiness, SessionState
from agent.local_scheduler.action_state import State, advance
from agent.local_scheduler.agent_stream import AgentStream, OutOfOrder, least_loaded
from agent.local_scheduler.unknown_sessions import Strangers
from agent.pipeline.events import Started
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.domain.actions import Key
    from agent.domain.events import Event
    from agent.domain.session_state import Health
    from agent.local_scheduler.registry import Book, Entry
    from agent.pipeline.parser import Pipeline

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Rules:
    """How patient the scheduler is; times in seconds. `attempts` is how often an action is begun at most."""

    health_interval: float = 10.0
    resume_grace: float = 60.0
    attempts: int = 3
    register_timeout: float = 15.0


class Dispatcher:
    """The agents that are connected, and what they have."""

    def __init__(self, book: Book, rules: Rules) -> None:
        self.book = book
        self.rules = rules
        self.streams: dict[str, AgentStream] = {}
        self.strangers = Strangers(rules.resume_grace)
        self.ready = asyncio.Event()
        self.stopping = False

    def start(self) -> None:
        """Give the agents of the time before a restart the grace to come back."""
        for entry in self.book.entries():
            if entry.progress.state is State.RUNNING:
                entry.sent = True
                self.lose(entry)

    def stop(self) -> None:
        """End all streams and forget all timers."""
        self.stopping = True
        self.strangers.stop()
        for stream in self.streams.values():
            stream.close()
        for entry in self.book.entries():
            self.find(entry)

    # ---- agents come and go

    async def register(self, stream: AgentStream, sessions: Sequence[SessionState]) -> None:
        """Take an agent into the pool and answer for every session that it names.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        if (older := self.streams.get(stream.pod)) is not None:
            older.close()
        self.streams[stream.pod] = stream
        log.info("agent registered", agent=stream.agent_id, slots=stream.slots, sessions=len(sessions))
        for session in sessions:
            await self.name(stream, session)
        named = {session.key.action_id for session in sessions}
        for entry in list(self.book.entries()):
            progress = entry.progress
            mine = progress.state is State.RUNNING and progress.agent.partition(".")[0] == stream.pod
            if mine and entry.action_id not in named:
                entry.stream = None
                if progress.agent == stream.agent_id and progress.seq == 0:
                    self.find(entry)
                    entry.sent = False
                self.leave(entry)
        self.place()

    def unregister(self, stream: AgentStream) -> None:
        """Take an agent out of the pool; its sessions wait for it or its heirs."""
        stream.close()
        if self.streams.get(stream.pod) is not stream:
            return
        del self.streams[stream.pod]
        log.info("agent gone", agent=stream.agent_id, sessions=len(stream.sessions))
        for action_id in sorted(stream.sessions):
            entry = self.book.find(action_id)
            if entry is not None and entry.stream is stream:
                entry.stream = None
                self.leave(entry)
        self.place()

    def leave(self, entry: Entry) -> None:
        """Decide about an action whose agent does not have it any more."""
        if entry.progress.state is not State.RUNNING or self.stopping:
            return
        if entry.sent:
            self.lose(entry)
        else:
            self.book.record(entry, entry.progress.taken_back())

    async def name(self, stream: AgentStream, session: SessionState) -> None:
        """Answer for a session that an agent holds: go on, or drop it."""
        key = session.key
        if self.book.find(key.action_id) is None:
            self.strangers.wait(stream, session)
        entry = self.current(stream, key)
        if entry is None or stream.closed:
            return
        if entry.progress.state is State.ENDED:
            stream.discard(key, "the action has ended")
            return
        progress = replace(entry.progress, state=State.RUNNING, agent=stream.agent_id, claim=key.claim)
        self.take(entry, stream)
        bound = asyncio.Event()
        self.book.record(entry, progress, then=bound.set)
        await self.book.store.until(bound)
        if entry.stream is stream and not stream.closed:
            stream.resume(entry, adopted=session.adopted)

    def take(self, entry: Entry, stream: AgentStream) -> None:
        """Bind an action to the stream of the agent that has it."""
        self.find(entry)
        if entry.stream is not None:
            entry.stream.sessions.discard(entry.action_id)
        entry.stream = stream
        entry.sent = True
        stream.sessions.add(entry.action_id)

    # ---- lost and found

    def lose(self, entry: Entry) -> None:
        """Begin to wait for the agent of an action, or an heir."""
        if entry.lost is None:
            loop = asyncio.get_running_loop()
            entry.lost = loop.call_later(self.rules.resume_grace, self.give_up, entry)

    def find(self, entry: Entry) -> None:
        """Stop waiting."""
        if entry.lost is not None:
            entry.lost.cancel()
            entry.lost = None

    def give_up(self, entry: Entry) -> None:
        """Nobody came: begin the next attempt, unless the action was cancelled or begun often enough."""
        entry.lost = None
        progress = entry.progress
        if progress.state is not State.RUNNING or self.book.store.unusable:
            return
        stage = progress.stage or Stage.ADMISSION
        if progress.cancel is not None:
            outcome = Outcome(
                Result.CANCELLED, stage, Reason.CANCELLED, message=f"{progress.cancel}; its agent was lost"
            )
            self.book.end(entry, outcome)
        elif progress.attempt >= self.rules.attempts:
            message = f"its agent was lost in attempt {progress.attempt}, the last one"
            self.book.end(entry, Outcome(Result.FAILED, stage, Reason.INTERNAL, message=message))
        else:
            log.warning("agent lost, next attempt", action=progress.action_id, attempt=progress.attempt + 1)
            entry.sent = False
            entry.files = []
            self.book.record(entry, progress.again())
        self.place()

    # ---- work goes out

    async def submit(self, run_id: str, asked: Pipeline, secrets: Mapping[str, str]) -> None:
        """Queue a pipeline; one that exists stays as it is.

        Raises:
            ValueError: the id is none.
            PipelineExists: the id is another pipeline's.
            StoreFailed: nothing more can be stored.
        """
        run = await self.book.submit(run_id, asked, secrets)
        for entry in run.entries.values():
            if (found := self.strangers.claim(entry.action_id)) is not None:
                await self.recognise(entry, *found)
        self.place()

    async def recognise(self, entry: Entry, stream: AgentStream, session: SessionState) -> None:
        """Have an action go on where it runs; all of it is told again."""
        if not stream.closed and entry.progress.state is State.WAITING:
            same = replace(entry.progress, attempt=session.key.attempt, claim=session.key.claim)
            self.book.record(entry, same.given(stream.agent_id, time.time()), [Started(stream.agent_id)])
            await self.name(stream, session)

    def place(self) -> None:
        """Give waiting actions to agents with free slots, the least loaded first."""
        if self.stopping or self.book.store.unusable:
            return
        for entry in list(self.book.ready()):
            if entry.action_id in self.strangers.waiting:
                continue
            stream = least_loaded(self.streams.values())
            if stream is None:
                return
            self.give(entry, stream)

    def give(self, entry: Entry, stream: AgentStream) -> None:
        """Give an action to an agent; it is sent when the store has it."""
        entry.stream = stream
        entry.sent = False
        stream.sessions.add(entry.action_id)
        stream.sent_since_health += 1
        progress = entry.progress.given(stream.agent_id, time.time())

        def send() -> None:
            current = entry.progress
            if entry.stream is not stream or stream.closed or current.state is not State.RUNNING:
                return
            entry.sent = True
            stream.send_action(translate.action_message(entry.plan.action(current.key, entry.run.secrets)))
            if current.cancel is not None:
                self.send_cancel(entry)

        self.book.record(entry, progress, [Started(stream.agent_id)], then=send)

    def cancel(self, run_id: str, message: str) -> None:
        """End every action of a pipeline; those that an agent has end when it says so.

        Raises:
            PipelineUnknown: there is none.
            StoreFailed: nothing more can be stored.
        """
        for entry in self.book.get(run_id).entries.values():
            if entry.progress.state is State.WAITING:
                self.book.end(entry, Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=message))
            elif entry.progress.state is State.RUNNING and entry.progress.cancel is None:
                progress = replace(entry.progress, cancel=message)
                self.book.record(entry, progress, then=lambda entry=entry: self.send_cancel(entry))  # type: ignore[misc]

    def send_cancel(self, entry: Entry) -> None:
        """Tell the agent that has an action to end it."""
        progress = entry.progress
        if entry.stream is not None and entry.sent and progress.state is State.RUNNING and progress.cancel is not None:
            message = translate.cancel_message(progress.key.attempt_key, Cancel(message=progress.cancel))
            entry.stream.send(wire.SchedulerMessage(cancel=message))

    # ---- news comes in

    def health(self, stream: AgentStream, health: Health) -> None:
        """Take note of how an agent is."""
        stream.update(health)
        if health.status is Readiness.READY:
            self.ready.set()
        self.place()

    def current(self, stream: AgentStream, key: Key) -> Entry | None:
        """Return the action that an agent speaks of if it may, else tell it to drop it."""
        entry = self.book.find(key.action_id)
        if entry is None:
            if not self.strangers.holds(key):
                stream.discard(key, "the scheduler does not know this action")
        elif key.attempt != entry.progress.attempt:
            stream.discard(key, f"attempt {key.attempt} is superseded by attempt {entry.progress.attempt}")
        elif key.claim < entry.progress.claim:
            stream.discard(key, f"claim {entry.progress.claim} owns the attempt", claimed_by_other=True)
        else:
            return entry
        return None

    async def receive(self, stream: AgentStream, key: Key, seq: int, event: Event | None) -> None:
        """Take an event: once, in order, from the owner of the attempt only.

        Raises:
            OutOfOrder: events before it are missing.
            StoreFailed: nothing more can be stored.
        """
        await self.book.store.room()
        entry = None if stream.closed else self.current(stream, key)
        if entry is None:
            return
        progress = entry.progress
        if seq <= progress.seq:
            if entry.stored_seq:
                stream.ack(key, entry.stored_seq)
            return
        if progress.state is State.ENDED:
            stream.discard(key, "the action has ended")
            return
        if isinstance(event, Rejected):
            self.rejected(stream, entry, event, key, seq)
            return
        if seq != progress.seq + 1:
            raise OutOfOrder(f"event {seq} of {key.action_id} follows {progress.seq}")
        if key.claim > progress.claim or entry.stream is not stream or progress.state is State.WAITING:
            progress = replace(progress, claim=key.claim, agent=stream.agent_id, state=State.RUNNING)
            self.take(entry, stream)
        progress, happening = advance(progress, seq, event, time.time())
        self.book.record(entry, progress, [happening] if happening else [], then=lambda: stream.ack(key, progress.seq))
        if progress.state is State.ENDED:
            stream.sessions.discard(entry.action_id)
            entry.stream = None
            self.place()

    def rejected(self, stream: AgentStream, entry: Entry, event: Rejected, key: Key, seq: int) -> None:
        """Give an action that an agent did not take to another, or let it wait."""
        stream.ack(key, seq)
        stream.sessions.discard(entry.action_id)
        if event.why is Rejection.NO_SLOT or stream.health is None:
            stream.full_until_health = True
        else:
            stream.health = None
        if entry.stream is not stream or entry.progress.state is not State.RUNNING:
            return
        log.info("action rejected", action=key.action_id, agent=stream.agent_id, why=event.why.value)
        entry.stream = None
        entry.sent = False
        if entry.progress.cancel is not None:
            message = entry.progress.cancel
            self.book.end(entry, Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=message))
        else:
            self.book.record(entry, entry.progress.taken_back())
        self.place()

    def unreadable(self, stream: AgentStream, key: Key, message: str) -> None:
        """End the action of which an agent sent something that cannot be read."""
        entry = None if stream.closed else self.current(stream, key)
        if entry is None:
            return
        stream.discard(key, message)
        if entry.progress.state is not State.ENDED:
            stage = entry.progress.stage or Stage.ADMISSION
            message = f"its agent sent something that cannot be read: {message}"
            self.book.end(entry, Outcome(Result.FAILED, stage, Reason.INTERNAL, message=message))
            stream.sessions.discard(entry.action_id)
            entry.stream = None
            self.place()
