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
from agent.local_scheduler.action_state import ActionStatus, advance
from agent.local_scheduler.agent_stream import AgentStream, OutOfOrder, least_loaded
from agent.local_scheduler.unknown_sessions import UnknownSessions
from agent.pipeline.events import Started
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.domain.actions import Key
    from agent.domain.events import Event
    from agent.domain.session_state import Health
    from agent.local_scheduler.registry import ActionRecord, PipelineRegistry
    from agent.pipeline.parser import Pipeline

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """How patient the scheduler is; times in seconds. `attempts` is how often an action is begun at most."""

    health_interval: float = 10.0
    resume_grace: float = 60.0
    attempts: int = 3
    register_timeout: float = 15.0


class Dispatcher:
    """The agents that are connected, and what they have."""

    def __init__(self, registry: PipelineRegistry, options: SchedulerOptions) -> None:
        self.registry = registry
        self.options = options
        self.streams: dict[str, AgentStream] = {}
        self.unknown_sessions = UnknownSessions(options.resume_grace)
        self.ready = asyncio.Event()
        self.stopping = False

    def start(self) -> None:
        """Give the agents of the time before a restart the grace to come back."""
        for record in self.registry.open_records():
            if record.state.status is ActionStatus.RUNNING:
                record.sent_to_agent = True
                self.start_grace_timer(record)

    def stop(self) -> None:
        """End all streams and forget all timers."""
        self.stopping = True
        self.unknown_sessions.stop()
        for stream in self.streams.values():
            stream.close()
        for record in self.registry.open_records():
            self.stop_grace_timer(record)

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
            await self.answer_session(stream, session)
        named = {session.key.action_id for session in sessions}
        for record in list(self.registry.open_records()):
            state = record.state
            mine = state.status is ActionStatus.RUNNING and state.agent.partition(".")[0] == stream.pod
            if mine and record.action_id not in named:
                record.stream = None
                if state.agent == stream.agent_id and state.seq == 0:
                    self.stop_grace_timer(record)
                    record.sent_to_agent = False
                self.on_agent_lost(record)
        self.schedule()

    def unregister(self, stream: AgentStream) -> None:
        """Take an agent out of the pool; its sessions wait for it or its heirs."""
        stream.close()
        if self.streams.get(stream.pod) is not stream:
            return
        del self.streams[stream.pod]
        log.info("agent gone", agent=stream.agent_id, sessions=len(stream.sessions))
        for action_id in sorted(stream.sessions):
            record = self.registry.find(action_id)
            if record is not None and record.stream is stream:
                record.stream = None
                self.on_agent_lost(record)
        self.schedule()

    def on_agent_lost(self, record: ActionRecord) -> None:
        """Decide about an action whose agent does not have it any more."""
        if record.state.status is not ActionStatus.RUNNING or self.stopping:
            return
        if record.sent_to_agent:
            self.start_grace_timer(record)
        else:
            self.registry.update(record, record.state.unassigned())

    async def answer_session(self, stream: AgentStream, session: SessionState) -> None:
        """Answer for a session that an agent holds: go on, or drop it."""
        key = session.key
        if self.registry.find(key.action_id) is None:
            self.unknown_sessions.wait(stream, session)
        record = self.owned_record(stream, key)
        if record is None or stream.closed:
            return
        if record.state.status is ActionStatus.ENDED:
            stream.discard(key, "the action has ended")
            return
        state = replace(record.state, status=ActionStatus.RUNNING, agent=stream.agent_id, claim=key.claim)
        self.bind(record, stream)
        bound = asyncio.Event()
        self.registry.update(record, state, then=bound.set)
        await self.registry.store.wait_until(bound)
        if record.stream is stream and not stream.closed:
            stream.resume(record, adopted=session.adopted)

    def bind(self, record: ActionRecord, stream: AgentStream) -> None:
        """Bind an action to the stream of the agent that has it."""
        self.stop_grace_timer(record)
        if record.stream is not None:
            record.stream.sessions.discard(record.action_id)
        record.stream = stream
        record.sent_to_agent = True
        stream.sessions.add(record.action_id)

    # ---- lost and found

    def start_grace_timer(self, record: ActionRecord) -> None:
        """Begin to wait for the agent of an action, or an heir."""
        if record.grace_timer is None:
            loop = asyncio.get_running_loop()
            record.grace_timer = loop.call_later(self.options.resume_grace, self.on_grace_expired, record)

    def stop_grace_timer(self, record: ActionRecord) -> None:
        """Stop waiting."""
        if record.grace_timer is not None:
            record.grace_timer.cancel()
            record.grace_timer = None

    def on_grace_expired(self, record: ActionRecord) -> None:
        """Nobody came: begin the next attempt, unless the action was cancelled or begun often enough."""
        record.grace_timer = None
        state = record.state
        if state.status is not ActionStatus.RUNNING or self.registry.store.unusable:
            return
        stage = state.stage or Stage.ADMISSION
        if state.cancel is not None:
            outcome = Outcome(Result.CANCELLED, stage, Reason.CANCELLED, message=f"{state.cancel}; its agent was lost")
            self.registry.end_action(record, outcome)
        elif state.attempt >= self.options.attempts:
            message = f"its agent was lost in attempt {state.attempt}, the last one"
            self.registry.end_action(record, Outcome(Result.FAILED, stage, Reason.INTERNAL, message=message))
        else:
            log.warning("agent lost, next attempt", action=state.action_id, attempt=state.attempt + 1)
            record.sent_to_agent = False
            record.files = []
            self.registry.update(record, state.next_attempt())
        self.schedule()

    # ---- work goes out

    async def submit(self, run_id: str, asked: Pipeline, secrets: Mapping[str, str]) -> None:
        """Queue a pipeline; one that exists stays as it is.

        Raises:
            ValueError: the id is none.
            PipelineExists: the id is another pipeline's.
            StoreFailed: nothing more can be stored.
        """
        run = await self.registry.submit(run_id, asked, secrets)
        for record in run.records.values():
            if (found := self.unknown_sessions.claim(record.action_id)) is not None:
                await self.resume_unknown_session(record, *found)
        self.schedule()

    async def resume_unknown_session(self, record: ActionRecord, stream: AgentStream, session: SessionState) -> None:
        """Have an action go on where it runs; all of it is told again."""
        if not stream.closed and record.state.status is ActionStatus.WAITING:
            same = replace(record.state, attempt=session.key.attempt, claim=session.key.claim)
            self.registry.update(record, same.assigned_to(stream.agent_id, time.time()), [Started(stream.agent_id)])
            await self.answer_session(stream, session)

    def schedule(self) -> None:
        """Give waiting actions to agents with free slots, the least loaded first."""
        if self.stopping or self.registry.store.unusable:
            return
        for record in list(self.registry.ready_records()):
            if record.action_id in self.unknown_sessions.waiting:
                continue
            stream = least_loaded(self.streams.values())
            if stream is None:
                return
            self.assign(record, stream)

    def assign(self, record: ActionRecord, stream: AgentStream) -> None:
        """Give an action to an agent; it is sent when the store has it."""
        record.stream = stream
        record.sent_to_agent = False
        stream.sessions.add(record.action_id)
        stream.sent_since_health += 1
        state = record.state.assigned_to(stream.agent_id, time.time())

        def send() -> None:
            current = record.state
            if record.stream is not stream or stream.closed or current.status is not ActionStatus.RUNNING:
                return
            record.sent_to_agent = True
            stream.send_action(translate.action_message(record.plan.action(current.key, record.run.secrets)))
            if current.cancel is not None:
                self.send_cancel(record)

        self.registry.update(record, state, [Started(stream.agent_id)], then=send)

    def cancel(self, run_id: str, message: str) -> None:
        """End every action of a pipeline; those that an agent has end when it says so.

        Raises:
            PipelineUnknown: there is none.
            StoreFailed: nothing more can be stored.
        """
        for record in self.registry.get(run_id).records.values():
            if record.state.status is ActionStatus.WAITING:
                self.registry.end_action(
                    record, Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=message)
                )
            elif record.state.status is ActionStatus.RUNNING and record.state.cancel is None:
                state = replace(record.state, cancel=message)
                self.registry.update(record, state, then=lambda record=record: self.send_cancel(record))  # type: ignore[misc]

    def send_cancel(self, record: ActionRecord) -> None:
        """Tell the agent that has an action to end it."""
        state = record.state
        if (
            record.stream is not None
            and record.sent_to_agent
            and state.status is ActionStatus.RUNNING
            and state.cancel is not None
        ):
            message = translate.cancel_message(state.key.attempt_key, Cancel(message=state.cancel))
            record.stream.send(wire.SchedulerMessage(cancel=message))

    # ---- news comes in

    def update_health(self, stream: AgentStream, health: Health) -> None:
        """Take note of how an agent is."""
        stream.update_health(health)
        if health.status is Readiness.READY:
            self.ready.set()
        self.schedule()

    def owned_record(self, stream: AgentStream, key: Key) -> ActionRecord | None:
        """Return the action that an agent speaks of if it may, else tell it to drop it."""
        record = self.registry.find(key.action_id)
        if record is None:
            if not self.unknown_sessions.holds(key):
                stream.discard(key, "the scheduler does not know this action")
        elif key.attempt != record.state.attempt:
            stream.discard(key, f"attempt {key.attempt} is superseded by attempt {record.state.attempt}")
        elif key.claim < record.state.claim:
            stream.discard(key, f"claim {record.state.claim} owns the attempt", claimed_by_other=True)
        else:
            return record
        return None

    async def receive(self, stream: AgentStream, key: Key, seq: int, event: Event | None) -> None:
        """Take an event: once, in order, from the owner of the attempt only.

        Raises:
            OutOfOrder: events before it are missing.
            StoreFailed: nothing more can be stored.
        """
        await self.registry.store.wait_for_room()
        record = None if stream.closed else self.owned_record(stream, key)
        if record is None:
            return
        state = record.state
        if seq <= state.seq:
            if record.stored_seq:
                stream.ack(key, record.stored_seq)
            return
        if state.status is ActionStatus.ENDED:
            stream.discard(key, "the action has ended")
            return
        if isinstance(event, Rejected):
            self.on_rejected(stream, record, event, key, seq)
            return
        if seq != state.seq + 1:
            raise OutOfOrder(f"event {seq} of {key.action_id} follows {state.seq}")
        if key.claim > state.claim or record.stream is not stream or state.status is ActionStatus.WAITING:
            state = replace(state, claim=key.claim, agent=stream.agent_id, status=ActionStatus.RUNNING)
            self.bind(record, stream)
        state, body = advance(state, seq, event, time.time())
        self.registry.update(record, state, [body] if body else [], then=lambda: stream.ack(key, state.seq))
        if state.status is ActionStatus.ENDED:
            stream.sessions.discard(record.action_id)
            record.stream = None
            self.schedule()

    def on_rejected(self, stream: AgentStream, record: ActionRecord, event: Rejected, key: Key, seq: int) -> None:
        """Give an action that an agent did not take to another, or let it wait."""
        stream.ack(key, seq)
        stream.sessions.discard(record.action_id)
        if event.why is Rejection.NO_SLOT or stream.health is None:
            stream.full_until_health = True
        else:
            stream.health = None
        if record.stream is not stream or record.state.status is not ActionStatus.RUNNING:
            return
        log.info("action rejected", action=key.action_id, agent=stream.agent_id, why=event.why.value)
        record.stream = None
        record.sent_to_agent = False
        if record.state.cancel is not None:
            message = record.state.cancel
            self.registry.end_action(
                record, Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=message)
            )
        else:
            self.registry.update(record, record.state.unassigned())
        self.schedule()

    def on_unreadable_event(self, stream: AgentStream, key: Key, message: str) -> None:
        """End the action of which an agent sent something that cannot be read."""
        record = None if stream.closed else self.owned_record(stream, key)
        if record is None:
            return
        stream.discard(key, message)
        if record.state.status is not ActionStatus.ENDED:
            stage = record.state.stage or Stage.ADMISSION
            message = f"its agent sent something that cannot be read: {message}"
            self.registry.end_action(record, Outcome(Result.FAILED, stage, Reason.INTERNAL, message=message))
            stream.sessions.discard(record.action_id)
            record.stream = None
            self.schedule()
