"""A connected replica, as the scheduler sees it: what it can take, and what is on its way to it.

An `AgentStream` lives from a registration to the end of its stream. Nothing that is sent ever waits for the agent to
read: acknowledgements are cumulative, so that at most one per session waits, and the rest is bounded by the sessions.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import structlog

from agent.domain.actions import Cancel
from agent.domain.errors import AgentError
from agent.domain.log_cursor import Cursor
from agent.domain.session_state import Readiness, Resume
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from agent.domain.actions import Key
    from agent.domain.session_state import Health
    from agent.local_scheduler.registry import ActionRecord


log = structlog.get_logger(__name__)


class OutOfOrder(AgentError):
    """An agent left out events; it must register again and go on from what is stored."""


class AgentStream:
    """One stream of one replica. `pod` is what stays of its id over reconnects."""

    def __init__(self, agent_id: str, slots: int) -> None:
        self.agent_id = agent_id
        self.pod = agent_id.partition(".")[0]
        self.slots = slots
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
        """How many actions may be sent now.

        What it runs is known from its last health and from what was sent since; sessions that the health may not have
        seen yet count as well.
        """
        if self.health is None or self.health.status is not Readiness.READY or self.full_until_health or self.closed:
            return 0
        used = max(self.health.running + self.sent_since_health, len(self.sessions))
        return self.slots - used

    def update_health(self, health: Health) -> None:
        """Take note of how the agent is, and answer it."""
        if self.health is None or self.health.status is not health.status:
            log.info("an agent is", agent=self.agent_id, status=health.status.value, why=health.message)
        self.health = health
        self.slots = health.slots
        self.sent_since_health = 0
        self.full_until_health = False
        self.health_ack_due = True
        self.wake.set()

    def send(self, message: wire.SchedulerMessage) -> None:
        """Send something other than an acknowledgement."""
        self.messages.append(message)
        self.wake.set()

    def send_action(self, message: wire.Action) -> None:
        """Send an action."""
        self.send(wire.SchedulerMessage(action=message))

    def resume(self, record: ActionRecord, *, adopted: bool) -> None:
        """Say from where a session goes on: all of it is stored."""
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
        )
        self.send(wire.SchedulerMessage(resume=translate.resume_message(resume)))

    def ack(self, key: Key, seq: int) -> None:
        """Acknowledge all events of a session up to `seq`."""
        self.acks[key] = max(seq, self.acks.get(key, 0))
        self.wake.set()

    def discard(self, key: Key, message: str, *, claimed_by_other: bool = False) -> None:
        """Tell the agent to drop a session."""
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
        """End the stream after what waits was sent."""
        self.closed = True
        self.wake.set()

    async def outgoing(self) -> AsyncIterator[wire.SchedulerMessage]:
        """Yield what is to be sent, until closed. Read by one writer only."""
        while True:
            self.wake.clear()
            while (message := self.next_message()) is not None:
                yield message
            if self.closed:
                return
            await self.wake.wait()

    def next_message(self) -> wire.SchedulerMessage | None:
        """Take the next message, None when nothing waits."""
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


def least_loaded(streams: Iterable[AgentStream]) -> AgentStream | None:
    """Return the agent with the largest share of free slots, None when all are full."""
    free = [stream for stream in streams if stream.free_slots > 0]
    return max(free, key=lambda stream: stream.free_slots / stream.slots, default=None)
