"""The agent's place in the pool of a classic scheduler: registered, and its health told over one stream.

`run` lives as long as the process. That scheduler keeps no state, so whenever the stream of health ends the agent
registers again, for ever, with full jitter; calls that run do not notice. The last that is told is that nothing is
free: an entry of that pool is never removed, and this makes it the one that is chosen last.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from grpc import aio

from agent.domain.errors import Refused, SchedulerError
from agent.domain.quantities import quantity
from agent.domain.session_state import Readiness
from agent.scheduler.classic.wire import scheduler_pb2 as wire
from agent.scheduler.classic.wire import scheduler_pb2_grpc
from agent.scheduler.stream.channel import Broken, explain, metadata, open_channel
from agent.scheduler.stream.connection import STABLE_AFTER, Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.session_state import Health
    from agent.scheduler.stream.health import HealthReporter
    from agent.settings import SchedulerSettings
    from agent.telemetry.metrics import Metrics

    Where = Callable[[], Awaitable[wire.Hostname]]
    Call = aio.StreamUnaryCall[wire.HealthStatus, wire.Empty]

CLOSE_TIMEOUT = 1.0

log = structlog.get_logger(__name__)


def health_message(health: Health, memory: str) -> wire.Health:
    """Write what is free: slots in percent, and the memory that the policy gives to actions in them.

    An action of this wire cannot ask for memory, so each gets `memory`, the policy's default. Nothing is free while the
    agent leaves or does not reach its cluster.
    """
    free = max(0, health.slots - health.running) if health.status is Readiness.READY else 0
    return wire.Health(cpu_avail=100 * free // health.slots, memory_avail=int(quantity(memory or "0")) * free)


class Registration:
    """Keeps this agent registered. `registered` says whether it is now; `news` wakes who tells the health."""

    def __init__(
        self, settings: SchedulerSettings, memory: str, metrics: Metrics, health: HealthReporter, where: Where
    ) -> None:
        self.settings = settings
        self.where = where
        self.memory = memory
        self.metrics = metrics
        self.health = health
        self.backoff = Backoff(settings.reconnect_max)
        self.registered = False
        self.said = False
        self.news = asyncio.Event()
        self.closing = asyncio.Event()

    async def run(self) -> None:
        """Stay registered; return after `close`.

        Raises:
            Refused: the other end is no classic scheduler.
        """
        while not self.closing.is_set():
            try:
                await self.once()
            except SchedulerError as error:
                kind = error.kind if isinstance(error, Broken) else "refused"
                self.metrics.stream_reconnects.labels(kind).inc()
                if isinstance(error, Refused) and error.permanent:
                    raise
                if not self.said and not self.closing.is_set():
                    log.warning(f"cannot reach the scheduler at {self.settings.address}", reason=str(error), kind=kind)
                self.said = True
                await self.pause(self.backoff.after(error))

    def close(self) -> None:
        """End the stream, behind what is still to be told."""
        self.closing.set()
        self.news.set()

    async def once(self) -> None:
        """Register, and tell the health until that ends; returns only after `close`.

        Raises:
            SchedulerError: why it ended.
        """
        channel = open_channel(self.settings)
        try:
            stub = scheduler_pb2_grpc.AgentStub(channel)
            agent_id = await self.register(stub)
            since = time.monotonic()
            try:
                await self.report(stub.ReportHealthStatus(metadata=metadata(self.settings)), agent_id)
            finally:
                if time.monotonic() - since >= STABLE_AFTER:
                    self.backoff.reset()
                self.registered = False
                self.metrics.stream_connected.set(0)
        finally:
            await channel.close()

    async def register(self, stub: scheduler_pb2_grpc.AgentAsyncStub) -> int:
        """Enter the pool; returns the id there.

        Raises:
            SchedulerError: the scheduler does not answer, or refuses.
        """
        hostname = await self.where()
        health = health_message(self.health.current(), self.memory)
        request = wire.RegisterAgentRequest(health=health, hostname=hostname)
        self.metrics.stream_messages.labels("sent", "register").inc()
        try:
            answer = await stub.RegisterAgent(
                request, timeout=self.settings.register_timeout, metadata=metadata(self.settings)
            )
        except aio.AioRpcError as error:
            raise explain(error.code(), error.details() or "") from error
        self.metrics.stream_messages.labels("received", "registered").inc()
        self.metrics.stream_connected.set(1)
        self.registered = True
        self.said = False
        dialed = f"{hostname.host}:{hostname.port}"
        log.info("registered with the scheduler", address=self.settings.address, id=answer.id, dialed=dialed)
        return answer.id

    async def report(self, call: Call, agent_id: int) -> None:
        """Tell the health until the stream ends.

        Raises:
            Broken, Refused: it ended before `close`.
        """
        self.health.forget()
        self.news.set()
        ending = asyncio.create_task(ended(call), name="end of health")
        telling = asyncio.create_task(self.tell(call, agent_id), name="health")
        beating = asyncio.create_task(self.health.tick(self.settings.classic.health_interval), name="health interval")
        try:
            await asyncio.wait({ending, telling}, return_when=asyncio.FIRST_COMPLETED)
            # Why it broke is in the status of the call, whoever notices first.
            await asyncio.wait({ending}, timeout=CLOSE_TIMEOUT)
            if not self.closing.is_set():
                if telling.done() and not telling.cancelled() and (error := telling.exception()) is not None:
                    raise error
                raise ending.result() if ending.done() else Broken("silent", "the stream of health cannot be written")
        finally:
            for task in (ending, telling, beating):
                task.cancel()
            await asyncio.wait({ending, telling, beating})
            call.cancel()

    async def tell(self, call: Call, agent_id: int) -> None:
        """Write the health whenever it is due, and end the stream when this agent leaves."""
        try:
            while True:
                self.news.clear()
                if (health := self.health.take()) is not None:
                    await call.write(wire.HealthStatus(agent_id=agent_id, health=health_message(health, self.memory)))
                    self.metrics.stream_messages.labels("sent", "health").inc()
                    self.metrics.health_sent.set_to_current_time()
                elif self.closing.is_set():
                    await call.done_writing()
                    return
                else:
                    await self.news.wait()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            return  # the status of the call says more

    async def pause(self, delay: float) -> None:
        """Wait before the next try, unless this agent leaves."""
        try:
            async with asyncio.timeout(delay):
                await self.closing.wait()
        except TimeoutError:
            return


async def ended(call: Call) -> SchedulerError:
    """Wait for the end of a stream and return why it ended."""
    try:
        await call
    except aio.AioRpcError as error:
        return explain(error.code(), error.details() or "")
    return Broken("closed", "the scheduler closed the stream of health")
