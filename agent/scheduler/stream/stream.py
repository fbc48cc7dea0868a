"""One stream to the scheduler, from its registration to its end.

Five tasks share the stream:

- The reader hands messages to the inbox. It never waits for a write.
- The writer is the only task that writes. It sends health before events.
- The health clock makes the health due.
- The watchdog ends the stream when the scheduler no longer answers.
- The credential reload ends the stream when the token or a certificate was replaced.

The first task that fails ends the others and the stream. A `Stream` keeps no events. The outbox keeps unacknowledged
events for the next stream.
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
from agent.scheduler.call_status import ConnectionBroken, SentStatus, error_of_status

if TYPE_CHECKING:
    from agent.scheduler.stream.credential_reload import CredentialReload
    from agent.scheduler.stream.health import HealthReporter
    from agent.scheduler.stream.inbox import Inbox
    from agent.scheduler.stream.outbox import Outbox, Outgoing
    from agent.settings import SchedulerSettings
    from agent.telemetry.metrics import Metrics

    Call = aio.StreamStreamCall[wire.AgentMessage, wire.SchedulerMessage]

PROTOCOL_VERSION = 1
# Seconds between two health messages when the scheduler names no interval.
DEFAULT_INTERVAL = 10.0
# Seconds that a lost agent's sessions are kept when the scheduler names no grace.
DEFAULT_GRACE = 60.0
# Seconds until the next registration after the refusal POOL_UNKNOWN without a `retry_after`. The installer has to
# create the pool first.
POOL_UNKNOWN_DELAY = 60.0
# Seconds until the next registration after any refusal, at most. Without a bound the agent might never return.
LONGEST_RETRY_AFTER = 3600.0

log = structlog.get_logger(__name__)


class Stream:
    """One open stream. The caller must call `register` first, and then `run`, which lasts until the stream ends."""

    def __init__(
        self, settings: SchedulerSettings, call: Call, outbox: Outbox, health: HealthReporter, metrics: Metrics
    ) -> None:
        self.call = call
        self.status = SentStatus(call)
        self.outbox = outbox
        self.health = health
        self.metrics = metrics
        self.register_timeout = settings.register_timeout
        self.longest_silence = 2 * settings.keepalive
        self.unanswered_since: float | None = None
        self.closing = asyncio.Event()

    async def register(self, register: wire.Register) -> wire.Registered:
        """Register this agent and return the acknowledgement.

        Raises:
            Refused: the scheduler refuses this agent.
            ConnectionBroken: the scheduler cannot be reached or does not answer in time.
        """
        try:
            async with asyncio.timeout(self.register_timeout):
                await self.send("register", wire.AgentMessage(register=register))
                message = await self.read()
        except TimeoutError as error:
            why = f"no answer to the registration in {self.register_timeout:g} s"
            raise ConnectionBroken("silent", why) from error
        kind = message.WhichOneof("message")
        self.metrics.stream_messages.labels("received", kind or "unknown").inc()
        if kind == "registered":
            return message.registered
        if kind == "refused":
            raise refused_error(message.refused)
        raise ConnectionBroken("error", f"the registration was answered with {kind or 'an unknown message'}")

    async def run(self, inbox: Inbox, interval: float, reload: CredentialReload) -> NoReturn:
        """Exchange messages until the stream ends. `interval`: seconds between two health messages.

        Raises:
            SchedulerError: always, with the reason of the end.
        """
        self.health.make_due()
        try:
            async with asyncio.TaskGroup() as parts:
                parts.create_task(self.read_messages(inbox), name="stream reader")
                parts.create_task(self.write_messages(), name="stream writer")
                parts.create_task(self.watch_silence(), name="stream watchdog")
                parts.create_task(self.health.tick(interval), name="stream health clock")
                parts.create_task(reload.watch(), name="stream credentials")
        except BaseExceptionGroup as group:
            if group.split(SchedulerError)[1] is not None:
                raise
            raise first_error(group) from None
        raise AssertionError("the reader of a stream ended without a reason")

    def close(self) -> None:
        """Ask the writer to send the waiting messages, then to end the agent's side of the stream without an error."""
        self.closing.set()
        self.outbox.wake.set()

    # ---- the tasks of the stream

    async def read_messages(self, inbox: Inbox) -> NoReturn:
        while True:
            inbox.handle(await self.read())

    async def write_messages(self) -> None:
        """Send health and events as they become ready. Ends after `close`, when nothing is left to send."""
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

    async def watch_silence(self) -> NoReturn:
        """End the stream when the scheduler leaves a message unanswered for too long.

        Pings cannot detect this, because the scheduler's gRPC library answers pings even when its program is stuck.

        Raises:
            ConnectionBroken: the scheduler was silent for too long.
        """
        while True:
            await asyncio.sleep(self.longest_silence / 6)
            now = time.monotonic()
            if self.unanswered_since is not None and now - self.unanswered_since > self.longest_silence:
                raise ConnectionBroken("silent", f"the scheduler has not answered for {self.longest_silence:g} s")
            for key in self.outbox.resume_unanswered(now - self.register_timeout):
                log.warning("the scheduler did not send a resume point", action=key.action_id, attempt=key.attempt)

    # ---- methods for single messages

    def encode(self, item: Outgoing | SessionState) -> tuple[str, wire.AgentMessage]:
        """Return a pair for an item of the outbox: the kind, as the metrics label it, and the message."""
        if isinstance(item, SessionState):
            return "adopted", wire.AgentMessage(adopted=translate.session_state_message(item))
        return "event", wire.AgentMessage(event=translate.event_message(item.key, item.seq, item.event))

    async def send(self, kind: str, message: wire.AgentMessage) -> None:
        """Write one message. `kind` is the kind of the message, as the metrics label it.

        Raises:
            SchedulerError: the stream has ended.
        """
        if self.unanswered_since is None:
            self.unanswered_since = time.monotonic()
        try:
            await self.call.write(message)
        except (aio.AioRpcError, aio.UsageError, asyncio.InvalidStateError) as error:
            raise await self.end_reason() from error
        self.metrics.stream_messages.labels("sent", kind).inc()

    async def read(self) -> wire.SchedulerMessage:
        """Wait for one message and return it.

        Raises:
            SchedulerError: the stream has ended.
        """
        try:
            message = await self.call.read()
        except aio.AioRpcError as error:
            raise await self.end_reason() from error
        if not isinstance(message, wire.SchedulerMessage):
            raise await self.end_reason()
        self.unanswered_since = None
        return message

    async def end_reason(self) -> ConnectionBroken | Refused:
        """Wait for the end of the call and return its reason."""
        return error_of_status(*await self.status.read())


def refused_error(message: wire.Refused) -> Refused:
    """Return the error that stands for a refusal. After a reason that the agent does not know, it tries again."""
    name = wire.Refused.Why.Name(message.why) if message.why in wire.Refused.Why.values() else str(message.why)
    retry_after = None
    if message.HasField("retry_after"):
        retry_after = min(max(translate.seconds(message.retry_after), 0.0), LONGEST_RETRY_AFTER)
    if message.why == wire.Refused.POOL_UNKNOWN and retry_after is None:
        retry_after = POOL_UNKNOWN_DELAY
    return Refused(
        f"the scheduler refuses this agent: {name} {message.message}".rstrip(),
        permanent=message.why == wire.Refused.PROTOCOL_VERSION,
        retry_after=retry_after,
    )


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first single error of a group. The error may be in a nested group."""
    return next(first_error(each) if isinstance(each, BaseExceptionGroup) else each for each in group.exceptions)
