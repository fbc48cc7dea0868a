"""The stream of one connected agent: the agent's free slots, and the messages that wait to be sent to the agent.

An `AgentStream` lives from a registration to the end of the gRPC call. Sending never waits for the agent to read.
The queue stays small, because acknowledgements are cumulative: at most one per session waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import structlog

from agent.domain.actions import Cancel
from agent.domain.errors import AgentError
from agent.domain.log_cursor import Cursor
from agent.domain.session_state import Feature, Readiness, Resume
from agent.local_scheduler.storage.inputs import inputs_of, resumed_inputs
from agent.pipeline.cache_keys import cache_scope
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Action, CacheScope, Key
    from agent.domain.session_state import Health
    from agent.local_scheduler.records import ActionRecord


log = structlog.get_logger(__name__)


class OutOfOrder(AgentError):
    """An agent skipped event numbers. Its stream ends, and the agent continues after the last stored event."""


class AgentStream:
    """One gRPC stream of one agent. `agent_id` is "<pod>.<nonce>". Each start of the agent's process has a new nonce.

    `sessions` holds the ids of the actions that the agent has. `AgentPool` changes `sessions`. `features` and `classes`
    (of environments) are those that the agent has named in its registration.
    """

    def __init__(
        self,
        agent_id: str,
        slots: int,
        features: frozenset[Feature] = frozenset(),
        classes: frozenset[str] = frozenset(),
    ) -> None:
        self.agent_id = agent_id
        self.pod = pod_of(agent_id)
        self.slots = slots
        self.features = features
        self.classes = classes
        self.health: Health | None = None
        self.sessions: set[str] = set()
        self.sent_since_health = 0
        self.full_until_health = False
        self.closed = False
        self.messages: deque[wire.SchedulerMessage] = deque()
        self.acks: dict[Key, int] = {}
        self.discards: dict[Key, wire.Discard] = {}
        self.health_ack_due = False
        self.wake = asyncio.Event()

    @property
    def free_slots(self) -> int:
        """The number of actions that may be sent to the agent now. 0 or a negative number means none."""
        if self.health is None or self.health.status is not Readiness.READY or self.full_until_health or self.closed:
            return 0
        # The last health report may be older than the last actions and sessions, so the larger count is used.
        used = max(self.health.running + self.sent_since_health, len(self.sessions))
        return self.slots - used

    def has_warm(self, image: str, environment_class: str) -> bool:
        """Return whether the agent's last health report names a warm pod for the action, and for each sent since."""
        waiting = self.health.warm if self.health is not None else ()
        return (
            sum(each.idle for each in waiting if (each.image, each.environment_class) == (image, environment_class))
            > self.sent_since_health
        )

    def has(self, features: frozenset[Feature], environment_class: str) -> bool:
        """Return whether the agent has all these features, and the class. "" stands for no class."""
        return features <= self.features and (not environment_class or environment_class in self.classes)

    def update_health(self, health: Health) -> None:
        """Store a health report and queue its acknowledgement."""
        if self.health is None or self.health.status is not health.status:
            log.info(
                "the readiness of an agent changed", agent=self.agent_id, status=health.status.value, why=health.message
            )
        self.health = health
        self.slots = health.slots
        self.sent_since_health = 0
        self.full_until_health = False
        self.health_ack_due = True
        self.wake.set()

    def send(self, message: wire.SchedulerMessage) -> None:
        """Queue a message. Use `ack` and `discard` for acknowledgements and discards."""
        self.messages.append(message)
        self.wake.set()

    def send_action(self, record: ActionRecord) -> None:
        action = record.plan.action(record.state.key, record.run.secrets, inputs_of(record), self.cache_scope(record))
        self.send(wire.SchedulerMessage(action=translate.action_message(action)))

    def cache_scope(self, record: ActionRecord) -> CacheScope | None:
        """Return which caches an action may use. None if the agent knows no caches, because no action needs them."""
        if Feature.CACHE not in self.features:
            return None
        return cache_scope(record.plan.repository, record.run.name)

    def resumed_action(self, record: ActionRecord) -> Action:
        inputs, scope = resumed_inputs(record), self.cache_scope(record)
        return record.plan.action(record.state.key, record.run.secrets, inputs, scope)

    def resume(self, record: ActionRecord, *, adopted: bool) -> None:
        """Queue the resume point of a session: its last stored event. An adopted session gets its action again."""
        state = record.state
        secrets = {name: record.run.secrets[name] for name in record.plan.secrets} if adopted else {}
        resume = Resume(
            key=state.key,
            seq=state.seq,
            cursor=Cursor.decode(state.cursor),
            stage=state.stage,
            command=state.command,
            cancel=Cancel(message=state.cancel) if state.cancel is not None else None,
            secrets=secrets,
            service_cursors=state.service_cursors,
            action=self.resumed_action(record) if adopted else None,
        )
        self.send(wire.SchedulerMessage(resume=translate.resume_message(resume)))

    def ack(self, key: Key, seq: int) -> None:
        """Queue the acknowledgement of all events of a session up to `seq`."""
        self.acks[key] = max(seq, self.acks.get(key, 0))
        self.wake.set()

    def discard(self, key: Key, message: str, *, claimed_by_other: bool = False) -> None:
        """Queue the request to drop a session. `claimed_by_other`: the pod belongs to another agent and must stay."""
        self.acks.pop(key, None)
        self.discards[key] = wire.Discard(
            action_id=key.action_id,
            attempt=key.attempt,
            claim=key.claim,
            claimed_by_other=claimed_by_other,
            message=message,
        )
        self.wake.set()

    def close(self) -> None:
        """End the stream after the queued messages are sent."""
        self.closed = True
        self.wake.set()

    async def outgoing(self) -> AsyncIterator[wire.SchedulerMessage]:
        """Yield messages for the agent until the stream is closed. Only one task may iterate."""
        while True:
            self.wake.clear()
            while (message := self.next_message()) is not None:
                yield message
            if self.closed:
                return
            await self.wake.wait()

    def next_message(self) -> wire.SchedulerMessage | None:
        """Remove and return the next message, None when the queue is empty."""
        if self.messages:
            return self.messages.popleft()
        if self.discards:
            return wire.SchedulerMessage(discard=self.discards.pop(next(iter(self.discards))))
        if self.acks:
            key = next(iter(self.acks))
            ack = wire.Ack(action_id=key.action_id, attempt=key.attempt, claim=key.claim, seq=self.acks.pop(key))
            return wire.SchedulerMessage(ack=ack)
        if self.health_ack_due:
            self.health_ack_due = False
            return wire.SchedulerMessage(ack=wire.Ack())
        return None


def pod_of(agent_id: str) -> str:
    """Return the part of an agent id that stays the same when the agent restarts."""
    return agent_id.partition(".")[0]
