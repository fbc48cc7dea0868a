"""The classic protocol as the application uses it, in place of `stream.connection` and the outbox.

One `ClassicConnection` lives as long as the process. It opens the port of the agent's gRPC server first and registers
with the scheduler afterwards. When the agent leaves, running calls get their last responses before the port is closed.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.aio import cancelled_on_exit, first_of
from agent.domain.errors import SchedulerError
from agent.scheduler.classic import service as services
from agent.scheduler.classic.callers import host_and_port, look_up
from agent.scheduler.classic.file_store import FileStore
from agent.scheduler.classic.registration import Registration
from agent.scheduler.classic.timings import DEFAULT_TIMINGS
from agent.scheduler.classic.wire import scheduler_pb2 as wire
from agent.scheduler.stream.health import HealthReporter

if TYPE_CHECKING:
    from agent.domain.actions import Key
    from agent.domain.session_state import Health
    from agent.scheduler.classic.call import Call
    from agent.scheduler.classic.timings import ClassicTimings
    from agent.scheduler.stream.inbox import Handlers
    from agent.settings import Settings
    from agent.telemetry.metrics import Metrics

# Seconds that `close` waits for the last health message, and then again for the close of the port.
CLOSE_TIMEOUT = 2.0

log = structlog.get_logger(__name__)


class ClassicConnection:
    """Implements `execution.ports.EventSink`.

    No other object may wait for the event `health.wake`, because the waiting task clears the event.
    """

    def __init__(
        self,
        settings: Settings,
        handlers: Handlers,
        metrics: Metrics,
        health: HealthReporter,
        timings: ClassicTimings = DEFAULT_TIMINGS,
    ) -> None:
        self.settings = settings.scheduler
        self.health = health
        own = self.settings.classic
        self.files = FileStore(own.files, own, metrics) if own.files is not None else None
        self.service = services.Service(self.settings, handlers, metrics, health, self.files, timings)
        self.load = HealthReporter(self.current_load, asyncio.Event())
        self.registration = Registration(self.settings, metrics, self.load, self.own_address)
        self.registering: asyncio.Task[None] | None = None
        self.port = 0
        self.finished = asyncio.Event()

    def open(self, key: Key, *, adopted: bool = False) -> Call:  # noqa: ARG002 - the port's signature
        """Return the scheduler's call for the action. Only this call receives the session's events."""
        return self.service.calls[key.attempt_key]

    @property
    def registered(self) -> bool:
        """Whether the scheduler has this agent in its pool now."""
        return self.registration.registered

    async def run(self) -> None:
        """Serve calls and stay registered until `close`.

        Raises:
            Refused: the server at the address is not a classic scheduler.
            CannotListen: the port cannot be opened.
        """
        self.finished.clear()
        try:
            server, self.port = await services.start(self.service, self.settings.classic)
            try:
                await self.serve()
            finally:
                await server.stop(services.STOP_GRACE)
        finally:
            self.finished.set()

    async def serve(self) -> None:
        """Stay registered. When a slot becomes free, start the action of a call that waits."""
        if self.files is not None:
            await asyncio.to_thread(self.files.prune)
        self.registering = asyncio.create_task(self.registration.run(), name="registration")
        admitting = asyncio.create_task(self.admit_on_change(), name="admission of calls")
        async with cancelled_on_exit(self.registering, admitting):
            await first_of(self.registering, admitting)
            for task in (self.registering, admitting):
                if task.done() and not task.cancelled():
                    task.result()

    def current_load(self) -> Health:
        """Return the health of the agent. Its `running` includes the calls that wait for a slot."""
        health = self.health.current()
        return replace(health, running=health.running + len(self.service.waiting))

    async def admit_on_change(self) -> None:
        """Start waiting calls and send the health, whenever the health may have changed."""
        while True:
            self.health.wake.clear()
            self.service.admit()
            self.load.notify()
            await self.health.wake.wait()

    async def close(self) -> None:
        """Close the health stream and the port. Takes a few seconds at most.

        The last health message reports the highest load, so that the scheduler chooses other agents.
        """
        if self.registering is None:
            return
        self.health.notify()
        self.registration.close()
        await asyncio.wait({self.registering}, timeout=CLOSE_TIMEOUT)
        self.registering.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.finished.wait()
        except TimeoutError:
            log.warning("the port for the scheduler could not be closed in time", port=self.port)

    async def own_address(self) -> wire.Hostname:
        """Return the host and port at which the scheduler calls this agent.

        Raises:
            SchedulerError: the scheduler's name cannot be looked up, or there is no route to it.
        """
        own = self.settings.classic
        host = with_scheme(own.host or await source_address(self.settings.address), tls=own.cert_file is not None)
        return wire.Hostname(host=host, port=self.port)


def with_scheme(host: str, *, tls: bool) -> str:
    """Return a host with the scheme that the scheduler expects, and an IPv6 address in brackets."""
    if "://" in host:
        return host
    bare = host.strip("[]")
    scheme = "https" if tls else "http"
    return f"{scheme}://[{bare}]" if ":" in bare else f"{scheme}://{bare}"


async def source_address(address: str) -> str:
    """Return this machine's IP address on the route to the scheduler. In a pod it is the pod's IP. Sends no packet.

    Raises:
        SchedulerError: the scheduler's name cannot be looked up, or there is no route to it.
    """
    try:
        found = await look_up(address)
        family, kind, protocol, _, target = found[0]
        # Connecting a UDP socket selects the route and the source address, without sending a packet.
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SchedulerError(f"there is no route to {host_and_port(address)[0]}: {error}") from error
