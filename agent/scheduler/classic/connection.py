"""The classic wire as the application sees it: a sink for sessions, and something that runs until it is closed.

One `Classic` lives as long as the process. First the port is opened, then the agent registers with it; when it leaves,
calls that are left get their last words before the port is closed.
"""

from __future__ import annotations

import asyncio
import re
import socket
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import SchedulerError
from agent.scheduler.classic import service as services
from agent.scheduler.classic.file_store import Folder
from agent.scheduler.classic.registration import Registration
from agent.scheduler.classic.wire import scheduler_pb2 as wire

if TYPE_CHECKING:
    from agent.domain.actions import Key
    from agent.scheduler.classic.call import Call
    from agent.scheduler.stream.health import HealthReporter
    from agent.scheduler.stream.inbox import Handlers
    from agent.settings import Settings
    from agent.telemetry.metrics import Metrics

CLOSE_TIMEOUT = 2.0
ADDRESS = re.compile(r"(?:dns:/*)?\[?(?P<host>.*?)\]?(?::(?P<port>\d+))?")

log = structlog.get_logger(__name__)


class Classic:
    """Implements `execution.event_sink.EventSink`. The event on which `health` wakes is this object's alone."""

    def __init__(self, settings: Settings, handlers: Handlers, metrics: Metrics, health: HealthReporter) -> None:
        self.settings = settings.scheduler
        self.health = health
        own = self.settings.classic
        self.folder = Folder(own.files, own, metrics) if own.files is not None else None
        self.service = services.Service(self.settings, handlers, metrics, health.current, self.folder)
        memory = settings.policy.default_memory
        self.registration = Registration(self.settings, memory, metrics, health, self.where)
        self.registering: asyncio.Task[None] | None = None
        self.port = 0
        self.ended = asyncio.Event()

    def open(self, key: Key, *, adopted: bool = False) -> Call:
        """Return the call that asked for the action: nobody else is told anything of it."""
        return self.service.calls[key.attempt_key]

    @property
    def registered(self) -> bool:
        """Whether the scheduler has this agent in its pool."""
        return self.registration.registered

    async def run(self) -> None:
        """Serve, and stay registered; return after `close`.

        Raises:
            Refused: the other end is no classic scheduler.
            CannotListen: the port cannot be had.
        """
        self.ended.clear()
        try:
            server, self.port = await services.start(self.service, self.settings.classic)
            try:
                await self.serve()
            finally:
                await server.stop(services.STOP_GRACE)
        finally:
            self.ended.set()

    async def serve(self) -> None:
        """Stay registered, and give waiting calls their turns."""
        if self.folder is not None:
            await asyncio.to_thread(self.folder.prune)
        self.registering = asyncio.create_task(self.registration.run(), name="registration")
        tasks = {self.registering, asyncio.create_task(self.turn(), name="turns")}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def turn(self) -> None:
        """Look who may begin, and tell the health, whenever the health may have changed."""
        while True:
            self.health.wake.clear()
            self.service.admit()
            self.registration.news.set()
            await self.health.wake.wait()

    async def close(self) -> None:
        """Say that nothing is free, end the stream of health, and close the port; takes a few seconds at most."""
        if self.registering is None:
            return
        self.health.changed()
        self.registration.close()
        await asyncio.wait({self.registering}, timeout=CLOSE_TIMEOUT)
        self.registering.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self.ended.wait()
        except TimeoutError:
            log.warning("the port for the scheduler could not be closed in time", port=self.port)

    async def where(self) -> wire.Hostname:
        """Return where the scheduler dials this agent.

        Raises:
            SchedulerError: no way leads to the scheduler now.
        """
        own = self.settings.classic
        host = advertised(own.host or await route(self.settings.address), tls=own.cert_file is not None)
        if self.folder is not None:
            self.folder.host = host
        return wire.Hostname(host=host, port=self.port)


def advertised(host: str, *, tls: bool) -> str:
    """Return a host with the scheme that the scheduler wants, and an IPv6 address in brackets."""
    if "://" in host:
        return host
    bare = host.strip("[]")
    scheme = "https" if tls else "http"
    return f"{scheme}://[{bare}]" if ":" in bare else f"{scheme}://{bare}"


async def route(address: str) -> str:
    """Return the own address from which packets to the scheduler leave: in a pod, the pod's IP. Nothing is sent.

    Raises:
        SchedulerError: the scheduler's name cannot be looked up, or no way leads to it.
    """
    match = ADDRESS.fullmatch(address)
    name = match["host"] if match is not None else address
    port = int(match["port"] or 443) if match is not None else 443
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise SchedulerError(f"no way leads to {name}: {error}") from error
