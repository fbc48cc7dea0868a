"""One stream to the scheduler, from its registration to its end.

Parts run side by side: a reader that never awaits a write, the only writer (health before events), a watchdog for a
scheduler that lives but does not answer, and one for credentials that were replaced. The first that fails ends the
others and the stream. Nothing is kept here: what was not acknowledged stays in the outbox, for the next stream.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NoReturn

import structlog
from grpc import aio

from agent.domain.errors import Refused, SchedulerError
from agent.domain.session_state import SessionState
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.stream.channel import Broken, explain

if TYPE_CHECKING:
    from agent.scheduler.stream.credential_reload import Rotation
    from agent.scheduler.stream.health import HealthReporter
    from agent.scheduler.stream.inbox import Receiver
    from agent.scheduler.stream.outbox import Outbox, Outgoing
    from agent.settings import SchedulerSettings
    from agent.telemetry.metrics import Metrics

    Call = aio.StreamStreamCall[wire.AgentMessage, wire.SchedulerMessage]

PROTOCOL_VERSION = 1
DEFAULT_INTERVAL = 10.0
DEFAULT_GRACE = 60.0
POOL_UNKNOWN_DELAY = 60.0

log = structlog.get_logger(__name__)


class Stream:
    """A stream that is open: registered by `register`, alive during `run`."""

    def __init__(
        self, settings: SchedulerSettings, call: Call, outbox: Outbox, health: HealthReporter, metrics: Metrics
    ) -> None:
        self.call = call
        self.outbox = outbox
        self.health = health
        self.metrics = metrics
        self.register_timeout = settings.register_timeout
        self.silence = 2 * settings.keepalive
        self.owed_since: float | None = None
        self.closing = asyncio.Event()

    async def register(self, register: wire.Register) -> wire.Registered:
        """Register and wait for the acknowledgement.

        Raises:
            Refused: the scheduler does not want this agent.
            Broken: it cannot be reached, or says nothing in time.
        """
        try:
            async with asyncio.timeout(self.register_timeout):
                await self.send("register", wire.AgentMessage(register=register))
                message = await self.read()
        except TimeoutError as error:
            raise Broken("silent", f"no answer to the registration in {self.register_timeout:g} s") from error
        kind = message.WhichOneof("message")
        self.metrics.stream_messages.labels("received", kind or "unknown").inc()
        if kind == "registered":
            return message.registered
        if kind == "refused":
            raise refusal(message.refused)
        raise Broken("error", f"the registration was answered with {kind or 'an unknown message'}")

    async def run(self, receiver: Receiver, interval: float, rotation: Rotation) -> NoReturn:
        """Talk until the stream ends.

        Raises:
            SchedulerError: always, saying why it ended.
        """
        self.health.forget()
        try:
            async with asyncio.TaskGroup() as parts:
                parts.create_task(self.receive(receiver), name="stream reader")
                parts.create_task(self.write(), name="stream writer")
                parts.create_task(self.watch(), name="stream watchdog")
                parts.create_task(self.health.tick(interval), name="stream health clock")
                parts.create_task(rotation.watch(), name="stream credentials")
        except BaseExceptionGroup as group:
            if group.split(SchedulerError)[1] is not None:
                raise
            raise first(group) from None
        raise AssertionError("the reader of a stream ended without a reason")

    def close(self) -> None:
        """Send what is ready to be sent, then end this side, so that the scheduler sees a clean end."""
        self.closing.set()
        self.outbox.wake.set()

    # ---- the parts

    async def receive(self, receiver: Receiver) -> NoReturn:
        """Read messages and act on them."""
        while True:
            receiver.receive(await self.read())

    async def write(self) -> None:
        """Send health and events as they come."""
        wake = self.outbox.wake
        while True:
            wake.clear()
            if (health := self.health.take()) is not None:
                await self.send("health", wire.AgentMessage(health=translate.health_message(health)))
                self.metrics.health_sent.set_to_current_time()
            elif (item := self.outbox.take()) is not None:
                await self.send(*self.encode(item))
            elif self.closing.is_set():
                await self.call.done_writing()
                return
            else:
                await wake.wait()

    async def watch(self) -> NoReturn:
        """End the stream when the scheduler owes an answer for too long.

        Pings are answered by a scheduler's gRPC library even when the program behind it is stuck.
        """
        while True:
            await asyncio.sleep(self.silence / 6)
            now = time.monotonic()
            if self.owed_since is not None and now - self.owed_since > self.silence:
                raise Broken("silent", f"the scheduler has answered nothing for {self.silence:g} s")
            for key in self.outbox.unanswered(now - self.register_timeout):
                log.warning("the scheduler did not say where to resume", action=key.action_id, attempt=key.attempt)

    # ---- single messages

    def encode(self, item: Outgoing | SessionState) -> tuple[str, wire.AgentMessage]:
        """Return the kind of what the outbox wants to say, and its message."""
        if isinstance(item, SessionState):
            return "adopted", wire.AgentMessage(adopted=translate.session_state_message(item))
        return "event", wire.AgentMessage(event=translate.event_message(item.key, item.seq, item.event))

    async def send(self, kind: str, message: wire.AgentMessage) -> None:
        """Write one message."""
        if self.owed_since is None:
            self.owed_since = time.monotonic()
        try:
            await self.call.write(message)
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError) as error:
            raise await self.ended() from error
        self.metrics.stream_messages.labels("sent", kind).inc()

    async def read(self) -> wire.SchedulerMessage:
        """Read one message."""
        try:
            message = await self.call.read()
        except aio.AioRpcError as error:
            raise explain(error.code(), error.details() or "") from error
        if not isinstance(message, wire.SchedulerMessage):
            raise await self.ended()
        self.owed_since = None
        return message

    async def ended(self) -> Broken | Refused:
        """Return why the call is over."""
        return explain(await self.call.code(), await self.call.details() or "")


def refusal(message: wire.Refused) -> Refused:
    """Say what a refusal means for this agent."""
    name = wire.Refused.Why.Name(message.why) if message.why in wire.Refused.Why.values() else str(message.why)
    retry_after = max(translate.seconds(message.retry_after), 0.0) if message.HasField("retry_after") else None
    if message.why == wire.Refused.POOL_UNKNOWN and retry_after is None:
        retry_after = POOL_UNKNOWN_DELAY
    return Refused(
        f"the scheduler refuses this agent: {name} {message.message}".rstrip(),
        permanent=message.why == wire.Refused.PROTOCOL_VERSION,
        retry_after=retry_after,
    )


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of a group."""
    return next(first(each) if isinstance(each, BaseExceptionGroup) else each for each in group.exceptions)
