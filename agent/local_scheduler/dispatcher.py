"""Decide which agent runs which action, and apply the agents' events.

All decisions happen on one event loop, and no decision contains an `await`. Effects of a decision (a message to an
agent, an acknowledgement) happen only after the store has written the decision. An attempt belongs to the agent with
the highest claim seen so far, and agents with lower claims get a Discard message. When an agent is lost, its actions
wait for a limited time, the resume grace. If in this time neither the agent returns nor another agent adopts the
sessions, the next attempts start.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import Reason, Rejection, Stage
from agent.domain.events import Rejected
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Readiness, SessionState
from agent.local_scheduler.action_state import ActionStatus, Admission, admission, advance
from agent.local_scheduler.agent_pool import AgentPool
from agent.local_scheduler.agent_stream import AgentStream, OutOfOrder, pod_of
from agent.local_scheduler.assignment import Assignment
from agent.local_scheduler.unknown_sessions import UnknownSessions
from agent.pipeline.events import Started

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.domain.actions import Key
    from agent.domain.events import Event
    from agent.domain.session_state import Health
    from agent.local_scheduler.options import SchedulerOptions
    from agent.local_scheduler.records import ActionRecord
    from agent.local_scheduler.registry import PipelineRegistry
    from agent.pipeline.parser import Pipeline

log = structlog.get_logger()


class Dispatcher:
    """The decisions of one scheduler. The server owns the only instance.

    `agent_ready` is set when the first agent reports that it is ready.
    """

    def __init__(self, registry: PipelineRegistry, options: SchedulerOptions) -> None:
        self.registry = registry
        self.options = options
        self.agents = AgentPool()
        self.unknown_sessions = UnknownSessions(options.resume_grace)
        self.assignment = Assignment(registry, self.agents, self.unknown_sessions)
        self.agent_ready = asyncio.Event()
        self.stopping = False

    def start(self) -> None:
        """Start the grace timers of the actions that ran before a restart of the scheduler."""
        for record in self.registry.open_records():
            if record.state.status is ActionStatus.RUNNING:
                record.sent_to_agent = True
                self.start_grace_timer(record)

    def stop(self) -> None:
        """Close all streams and cancel all timers."""
        self.stopping = True
        self.unknown_sessions.stop()
        self.agents.close()
        for record in self.registry.open_records():
            record.stop_grace_timer()

    # ---- connections and disconnections of agents

    async def register(self, stream: AgentStream, sessions: Sequence[SessionState]) -> None:
        """Add an agent and answer every session that its registration names.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        self.agents.add(stream)
        log.info("agent registered", agent=stream.agent_id, slots=stream.slots, sessions=len(sessions))
        for session in sessions:
            await self.answer_session(stream, session)
        named = {session.key.action_id for session in sessions}
        for record in list(self.registry.open_records()):
            state = record.state
            of_this_pod = state.status is ActionStatus.RUNNING and pod_of(state.agent) == stream.pod
            if of_this_pod and record.action_id not in named:
                record.agent_id = ""
                # This agent process has never received the action, so the action can be sent again.
                if state.agent == stream.agent_id and state.seq == 0:
                    record.stop_grace_timer()
                    record.sent_to_agent = False
                self.on_agent_lost(record)
        self.schedule()

    def unregister(self, stream: AgentStream) -> None:
        """Remove an agent. Its actions wait for its return or for an adopting agent. Safe to repeat."""
        if not self.agents.remove(stream):
            return
        log.info("agent disconnected", agent=stream.agent_id, sessions=len(stream.sessions))
        for action_id in sorted(stream.sessions):
            record = self.registry.find(action_id)
            if record is not None and record.agent_id == stream.agent_id:
                record.agent_id = ""
                self.on_agent_lost(record)
        self.schedule()

    def on_agent_lost(self, record: ActionRecord) -> None:
        """Start the grace timer of a lost agent's action. If the action was not sent yet, queue it again."""
        if record.state.status is not ActionStatus.RUNNING or self.stopping:
            return
        if record.sent_to_agent:
            self.start_grace_timer(record)
        else:
            self.registry.update(record, record.state.unassigned())

    async def answer_session(self, stream: AgentStream, session: SessionState) -> None:
        """Answer a session that an agent reports: resume it, discard it, or let it wait as an unknown session."""
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
        stored = asyncio.Event()
        self.registry.update(record, state, then=stored.set)
        await self.registry.store.wait_until(stored)
        if record.action_id in stream.sessions and not stream.closed:
            stream.resume(record, adopted=session.adopted)

    def bind(self, record: ActionRecord, stream: AgentStream) -> None:
        """Record that the agent of a stream has received an action and runs the action."""
        record.stop_grace_timer()
        self.agents.bind(record, stream)
        record.sent_to_agent = True

    # ---- the grace timer of a lost agent's action

    def start_grace_timer(self, record: ActionRecord) -> None:
        """Start the grace timer of an action, unless the timer runs already."""
        if record.grace_timer is None:
            seconds = self.options.resume_grace
            record.grace_timer = asyncio.get_running_loop().call_later(seconds, self.on_grace_expired, record)

    def on_grace_expired(self, record: ActionRecord) -> None:
        """Start the next attempt of a lost agent's action. End the action if it is cancelled or has no attempt left."""
        record.grace_timer = None
        state = record.state
        if state.status is not ActionStatus.RUNNING or self.registry.store.unusable:
            return
        if state.cancel is not None:
            self.end(record, Result.CANCELLED, Reason.CANCELLED, f"{state.cancel}; the agent was lost")
        elif state.attempt >= self.options.attempts:
            message = f"the agent was lost in attempt {state.attempt}, which was the last attempt"
            self.end(record, Result.FAILED, Reason.INTERNAL, message)
        else:
            log.warning("agent lost, the next attempt starts", action=state.action_id, attempt=state.attempt + 1)
            record.sent_to_agent = False
            record.files = []
            self.registry.update(record, state.next_attempt())
        self.schedule()

    def end(self, record: ActionRecord, result: Result, reason: Reason, message: str) -> None:
        """End an action in its current stage by a decision of the scheduler."""
        stage = record.state.stage or Stage.ADMISSION
        self.registry.end_action(record, Outcome(result, stage, reason, message=message))

    # ---- assignment of actions to agents

    async def submit(self, run_id: str, pipeline: Pipeline, secrets: Mapping[str, str]) -> None:
        """Queue a pipeline. If the same pipeline exists with this id, do nothing.

        Raises:
            PipelineIdInvalid: the id is malformed.
            PipelineExists: another pipeline has the id.
            StoreFailed: nothing more can be stored.
        """
        run = await self.registry.submit(run_id, pipeline, secrets)
        for record in run.records.values():
            if (found := self.unknown_sessions.pop(record.action_id)) is not None:
                await self.resume_unknown_session(record, *found)
        self.schedule()

    async def resume_unknown_session(self, record: ActionRecord, stream: AgentStream, session: SessionState) -> None:
        """Continue an action on the agent that already runs it. The agent sends all events of the attempt again."""
        if not stream.closed and record.state.status is ActionStatus.WAITING:
            same = replace(record.state, attempt=session.key.attempt, claim=session.key.claim)
            self.registry.update(record, same.assigned_to(stream.agent_id, time.time()), [Started(stream.agent_id)])
            await self.answer_session(stream, session)

    def schedule(self) -> None:
        """Assign waiting actions to agents with free slots."""
        if not self.stopping and not self.registry.store.unusable:
            self.assignment.run()

    def cancel(self, run_id: str, message: str) -> None:
        """Cancel every action of a pipeline. A running action ends when its agent reports the end.

        Raises:
            PipelineUnknown: no pipeline has the id.
            StoreFailed: nothing more can be stored.
        """
        for record in self.registry.get(run_id).records.values():
            if record.state.status is ActionStatus.WAITING:
                outcome = Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=message)
                self.registry.end_action(record, outcome)
            elif record.state.status is ActionStatus.RUNNING and record.state.cancel is None:
                state = replace(record.state, cancel=message)
                self.registry.update(record, state, then=partial(self.assignment.send_cancel, record))

    # ---- reports of agents

    def update_health(self, stream: AgentStream, health: Health) -> None:
        """Store a health report of an agent, and assign waiting actions to slots that became free."""
        stream.update_health(health)
        if health.status is Readiness.READY:
            self.agent_ready.set()
        self.schedule()

    def owned_record(self, stream: AgentStream, key: Key) -> ActionRecord | None:
        """Return the action of a key. If the agent does not own the attempt, queue a discard and return None."""
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
        """Apply an event once, in order, and only from the owner of the attempt.

        Raises:
            OutOfOrder: events before this event are missing.
            StoreFailed: nothing more can be stored.
        """
        await self.registry.store.wait_for_room()
        record = None if stream.closed else self.owned_record(stream, key)
        if record is None:
            return
        match admission(record.state, seq):
            case Admission.ACK:
                # Only stored events are acknowledged. An event that still waits for the store is acknowledged later.
                if record.stored_seq:
                    stream.ack(key, record.stored_seq)
            case Admission.DISCARD:
                stream.discard(key, "the action has ended")
            case Admission.APPLY | Admission.GAP if isinstance(event, Rejected):
                self.on_rejected(stream, record, event, key, seq)
            case Admission.GAP:
                raise OutOfOrder(f"event {seq} of {key.action_id} follows event {record.state.seq}")
            case Admission.APPLY:
                self.apply(stream, record, key, seq, event)

    def apply(self, stream: AgentStream, record: ActionRecord, key: Key, seq: int, event: Event | None) -> None:
        """Apply the next event of an attempt, and acknowledge the event after it is stored."""
        state = record.state
        of_new_owner = key.claim > state.claim or record.action_id not in stream.sessions
        if of_new_owner or state.status is ActionStatus.WAITING:
            state = replace(state, claim=key.claim, agent=stream.agent_id, status=ActionStatus.RUNNING)
            self.bind(record, stream)
        state, body = advance(state, seq, event, time.time())
        self.registry.update(record, state, [body] if body else [], then=lambda: stream.ack(key, seq))
        if state.status is ActionStatus.ENDED:
            self.agents.unbind(record, stream)
            self.schedule()

    def on_rejected(self, stream: AgentStream, record: ActionRecord, event: Rejected, key: Key, seq: int) -> None:
        """Let an action that an agent rejected wait for another agent."""
        stream.ack(key, seq)
        assigned = record.action_id in stream.sessions
        stream.sessions.discard(record.action_id)
        if event.why is Rejection.NO_SLOT or stream.health is None:
            stream.full_until_health = True
        else:
            # The agent drains or cannot use its cluster. The scheduler sends it no action until its next health report.
            stream.health = None
        if not assigned or record.state.status is not ActionStatus.RUNNING:
            return
        log.info("action rejected", action=key.action_id, agent=stream.agent_id, why=event.why.value)
        record.agent_id = ""
        record.sent_to_agent = False
        if record.state.cancel is not None:
            outcome = Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message=record.state.cancel)
            self.registry.end_action(record, outcome)
        else:
            self.registry.update(record, record.state.unassigned())
        self.schedule()

    def on_unreadable_event(self, stream: AgentStream, key: Key, message: str) -> None:
        """End an action whose agent sent an event that cannot be decoded."""
        record = None if stream.closed else self.owned_record(stream, key)
        if record is None:
            return
        stream.discard(key, message)
        if record.state.status is not ActionStatus.ENDED:
            text = f"the agent sent an event that cannot be decoded: {message}"
            self.end(record, Result.FAILED, Reason.INTERNAL, text)
            self.agents.unbind(record, stream)
            self.schedule()
