"""Assign waiting actions to agents: which agent gets which action, and what an action waits for.

An `Assignment` lives as long as its dispatcher. It does no I/O of its own. The registry stores each assignment before
the agent gets the action.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog

from agent.domain.actions import Cancel
from agent.local_scheduler.action_state import ActionStatus
from agent.pipeline.events import Started, WaitingForAgent
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from agent.local_scheduler.agent_pool import AgentPool
    from agent.local_scheduler.agent_stream import AgentStream
    from agent.local_scheduler.records import ActionRecord
    from agent.local_scheduler.registry import PipelineRegistry
    from agent.local_scheduler.unknown_sessions import UnknownSessions

log = structlog.get_logger()


class Assignment:
    """Assigns actions to the agents of a pool. The dispatcher owns the only instance."""

    def __init__(self, registry: PipelineRegistry, agents: AgentPool, unknown_sessions: UnknownSessions) -> None:
        self.registry = registry
        self.agents = agents
        self.unknown_sessions = unknown_sessions

    def run(self) -> None:
        """Assign waiting actions to agents with free slots, the least loaded agent first.

        An action that needs features or a class stays in the queue until an agent has them. Watchers of its pipeline
        get the reason once.
        """
        for record in self.registry.ready_records():
            # `Dispatcher.submit` is about to continue this action on the agent that already runs it.
            if record.action_id in self.unknown_sessions.waiting:
                continue
            plan = record.plan
            stream = self.agents.least_loaded(record.features, plan.environment_class, plan.image)
            if stream is not None:
                self.assign(record, stream)
            elif record.plan.is_special:
                self.report_what_is_missing(record)
            elif not self.registry.has_special:
                return

    def assign(self, record: ActionRecord, stream: AgentStream) -> None:
        """Assign an action to an agent, and send the action after the assignment is stored."""
        self.agents.bind(record, stream)
        record.sent_to_agent = False
        record.waits_for = ""
        stream.sent_since_health += 1
        state = record.state.assigned_to(stream.agent_id, time.time())

        def send() -> None:
            current = record.state
            assigned = record.action_id in stream.sessions and current.status is ActionStatus.RUNNING
            if stream.closed or not assigned:
                return
            record.sent_to_agent = True
            stream.send_action(record)
            if current.cancel is not None:
                self.send_cancel(record)

        self.registry.update(record, state, [Started(stream.agent_id)], then=send)

    def report_what_is_missing(self, record: ActionRecord) -> None:
        """Report which features or class of a waiting action no connected agent has. Report nothing twice in a row."""
        text = self.agents.missing_for(record.features, record.plan.environment_class)
        if not text and record.waits_for:
            # An action that waits only for a slot needs no report, unless another reason was reported before.
            text = "the agents that can run it have no free slot"
        if text != record.waits_for:
            record.waits_for = text
            log.warning("an action waits for an agent that can run it", action=record.action_id, why=text)
            self.registry.update(record, record.state, [WaitingForAgent(text)])

    def send_cancel(self, record: ActionRecord) -> None:
        """Send a stop request to the agent that has an action, if the action was sent and still runs."""
        state = record.state
        stream = self.agents.stream_of(record)
        if stream is None or not record.sent_to_agent:
            return
        if state.status is ActionStatus.RUNNING and state.cancel is not None:
            message = translate.cancel_message(state.key.attempt_key, Cancel(message=state.cancel))
            stream.send(wire.SchedulerMessage(cancel=message))
