"""The agent's place in the pool of a classic scheduler: one registration, and one stream that carries its health.

`run` lives as long as the process. A classic scheduler keeps no state. Whenever the stream of health ends, the agent
registers again. Running calls do not notice.

A classic scheduler sends each action to the agent with the lowest score. The score is the mean of the two numbers in
the agent's health message. The first number is therefore the load of the agent, not its free capacity. The scheduler
never removes an agent from its pool. The last health message therefore carries the highest numbers, so that the
scheduler chooses this agent last.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from grpc import aio

from agent.aio import cancelled_on_exit, first_of
from agent.domain.errors import SchedulerError
from agent.domain.session_state import Readiness
from agent.scheduler.call_status import ConnectionBroken, error_of_status
from agent.scheduler.classic.wire import scheduler_pb2 as wire
from agent.scheduler.classic.wire import scheduler_pb2_grpc
from agent.scheduler.reconnect import Reconnector
from agent.scheduler.stream.channel import call_metadata, open_channel

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.session_state import Health
    from agent.scheduler.stream.health import HealthReporter
    from agent.settings import SchedulerSettings
    from agent.telemetry.metrics import Metrics

    OwnAddress = Callable[[], Awaitable[wire.Hostname]]
    Call = aio.StreamUnaryCall[wire.HealthStatus, wire.Empty]

# Seconds to wait for the status of a health stream that has ended.
STATUS_TIMEOUT = 1.0
# The highest numbers that the two fields of the health message can carry.
MAX_CPU, MAX_MEMORY = 2**32 - 1, 2**64 - 1
CHOSEN_LAST = wire.Health(cpu_avail=MAX_CPU, memory_avail=MAX_MEMORY)

log = structlog.get_logger(__name__)


def health_message(health: Health) -> wire.Health:
    """Return the health message. Its first number is the load in percent of the slots.

    `health.running` includes the calls that wait for a slot, so the load can exceed 100.

    The second number of the message, for memory, stays 0. The scheduler would weigh it differently in a
    registration and in a health message. The message of an agent that drains or cannot use its cluster makes the
    scheduler choose this agent last.
    """
    if health.status is not Readiness.READY:
        return CHOSEN_LAST
    return wire.Health(cpu_avail=min(-(-100 * health.running // health.slots), MAX_CPU))


class Registration:
    """Keeps this agent registered. `ClassicConnection` owns one.

    No other object may wait for the event `health.wake`, because the waiting task clears the event. `health` counts
    calls that wait as running.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        metrics: Metrics,
        health: HealthReporter,
        own_address: OwnAddress,
    ) -> None:
        self.settings = settings
        self.own_address = own_address
        self.metrics = metrics
        self.health = health
        self.reconnector = Reconnector(settings, metrics, self.connect)
        self.wake = health.wake

    @property
    def registered(self) -> bool:
        """Whether the scheduler has this agent in its pool now."""
        return self.reconnector.connected.is_set()

    async def run(self) -> None:
        """Stay registered until `close`.

        Raises:
            Refused: the server at the address is not a classic scheduler.
        """
        await self.reconnector.run()

    def close(self) -> None:
        """Send the last health message, then end the stream."""
        self.reconnector.close()
        self.wake.set()

    async def connect(self) -> None:
        """Register and send health until the stream ends. Returns normally only if `close` ended the stream.

        Raises:
            SchedulerError: the reason of the end.
        """
        if not await self.wait_until_ready():
            return
        channel = open_channel(self.settings)
        try:
            stub = scheduler_pb2_grpc.AgentStub(channel)
            agent_id = await self.register(stub)
            await self.report_health(stub.ReportHealthStatus(metadata=call_metadata(self.settings)), agent_id)
        finally:
            self.reconnector.on_disconnected()
            await channel.close()

    async def wait_until_ready(self) -> bool:
        """Wait until the agent can run actions. Returns False if `close` comes first.

        An agent that registers earlier would get actions without a cluster in which it can run them.
        """
        while self.health.current().status is not Readiness.READY:
            if self.reconnector.closing.is_set():
                return False
            self.wake.clear()
            await self.wake.wait()
        return not self.reconnector.closing.is_set()

    async def register(self, stub: scheduler_pb2_grpc.AgentAsyncStub) -> int:
        """Register and return the id in the scheduler's pool.

        Raises:
            SchedulerError: the scheduler does not answer, or refuses.
        """
        hostname = await self.own_address()
        health = health_message(self.health.current())
        request = wire.RegisterAgentRequest(health=health, hostname=hostname)
        self.metrics.stream_messages.labels("sent", "register").inc()
        try:
            answer = await stub.RegisterAgent(
                request, timeout=self.settings.register_timeout, metadata=call_metadata(self.settings)
            )
        except aio.AioRpcError as error:
            raise error_of_status(error.code(), error.details() or "") from error
        self.metrics.stream_messages.labels("received", "registered").inc()
        self.reconnector.on_connected()
        dialed = f"{hostname.host}:{hostname.port}"
        log.info("registered with the scheduler", address=self.settings.address, id=answer.id, dialed=dialed)
        return answer.id

    async def report_health(self, call: Call, agent_id: int) -> None:
        """Send health until the stream ends.

        Raises:
            ConnectionBroken, Refused: the stream ended before `close`.
        """
        self.health.make_due()
        self.wake.set()
        interval = self.settings.classic.health_interval
        ending = asyncio.create_task(end_reason(call), name="end of health")
        writing = asyncio.create_task(self.write_health(call, agent_id), name="health")
        ticking = asyncio.create_task(self.health.tick(interval), name="health interval")
        try:
            async with cancelled_on_exit(ending, writing, ticking):
                await first_of(ending, writing)
                # The task `writing` may notice the end of the stream before the task `ending`. Only the result of
                # `ending` has the reason, so wait for `ending` too.
                await asyncio.wait({ending}, timeout=STATUS_TIMEOUT)
                if not self.reconnector.closing.is_set():
                    if writing.done() and not writing.cancelled() and (error := writing.exception()) is not None:
                        raise error
                    raise (
                        ending.result()
                        if ending.done()
                        else ConnectionBroken("silent", "the stream of health cannot be written")
                    )
        finally:
            call.cancel()

    async def write_health(self, call: Call, agent_id: int) -> None:
        """Send the health whenever it is due. Ends the stream after `close`, or returns when the stream has ended."""
        try:
            while True:
                self.wake.clear()
                if self.reconnector.closing.is_set():
                    await self.write_one(call, agent_id, CHOSEN_LAST)
                    await call.done_writing()
                    return
                if (health := self.health.take()) is not None:
                    await self.write_one(call, agent_id, health_message(health))
                else:
                    await self.wake.wait()
        except (aio.AioRpcError, asyncio.InvalidStateError):
            # The stream has ended. `end_reason` reads the status of the call, which has more details than this error.
            return

    async def write_one(self, call: Call, agent_id: int, health: wire.Health) -> None:
        await call.write(wire.HealthStatus(agent_id=agent_id, health=health))
        self.metrics.stream_messages.labels("sent", "health").inc()
        self.metrics.health_sent.set_to_current_time()


async def end_reason(call: Call) -> SchedulerError:
    """Wait for the end of a stream of health and return the reason."""
    try:
        await call
    except aio.AioRpcError as error:
        return error_of_status(error.code(), error.details() or "")
    return ConnectionBroken("closed", "the scheduler closed the stream of health")
