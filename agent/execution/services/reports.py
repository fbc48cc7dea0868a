"""What a session reports about its services, and what its commands still wait for.

A `ServiceReports` belongs to one `Session` and lives as long as this session.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.domain.errors import Stage
from agent.domain.events import ServiceChanged, ServiceState
from agent.domain.observations import FOR_SERVICES, Waiting

if TYPE_CHECKING:
    from agent.domain.actions import Service
    from agent.domain.observations import Observation
    from agent.execution.ports import Environment
    from agent.execution.reporter import EventReporter
    from agent.telemetry.metrics import Metrics

ORDER = (ServiceState.STARTING, ServiceState.READY, ServiceState.ENDED)


class ServiceReports:
    """The services of one session, owned by this session.

    `waiting` holds the services whose ports have not accepted yet. `commands_began` is set when the commands have
    begun. `reported` holds the last reported state of each service, and `ready` the services that were ever ready.
    """

    def __init__(self, services: tuple[Service, ...], reporter: EventReporter) -> None:
        self.services = services
        self.reporter = reporter
        self.waiting: list[Service] = []
        self.commands_began = asyncio.Event()
        self.reported: dict[str, ServiceChanged] = {}
        self.ready: set[str] = set()

    async def report(self, seen: Observation | None) -> None:
        """Send the states that an observation shows, if they are new. No state is followed by an earlier one."""
        if isinstance(seen, Waiting) and seen.for_services:
            self.reporter.trace.enter("services")
        for state in getattr(seen, "services", ()):
            await self.send(state)

    async def send(self, state: ServiceChanged) -> None:
        before = self.reported.get(state.name)
        if before is None or ORDER.index(state.state) > ORDER.index(before.state):
            self.reported[state.name] = state
            if state.state is ServiceState.READY:
                self.ready.add(state.name)
            await self.reporter.send(state)

    def count(self, metrics: Metrics) -> None:
        """Count the services of a session that has ended."""
        for service in self.services:
            metrics.services.labels("ready" if service.name in self.ready else "not_ready").inc()

    # ---- the start of the commands

    async def wait_for_ports(self, environment: Environment, *, began: bool) -> None:
        """Begin to wait until the ports of all services accept. Without ports, the commands begin now.

        `began`: the scheduler has stored that the commands have begun.
        """
        self.commands_began.clear()
        self.waiting = [] if began else [each for each in self.services if each.ports]
        if self.waiting:
            self.reporter.trace.enter("services")
            await self.reporter.enter(Stage.SETUP, self.detail)
        else:
            await self.begin_commands(environment)

    @property
    def detail(self) -> str:
        """Return what the commands wait for, for people: "waiting for service db: port 5432"."""
        texts = [f"{each.name}: port {', '.join(map(str, each.ports))}" for each in self.waiting]
        return f"{FOR_SERVICES}{'; '.join(texts)}"

    async def on_ready(self, number: int, environment: Environment) -> None:
        """Report that the ports of a service accept. `number` is its position in the action, from 1."""
        service = self.services[number - 1]
        environment.services.note_ready(service.name)
        await self.send(ServiceChanged(service.name, ServiceState.READY))
        if service in self.waiting:
            self.waiting.remove(service)
            if self.waiting:
                await self.reporter.enter(Stage.SETUP, self.detail)
            else:
                await self.begin_commands(environment)

    async def begin_commands(self, environment: Environment) -> None:
        """Report that the commands begin, unless that is done. A log whose beginning is lost shows only a command."""
        if not self.commands_began.is_set():
            self.waiting = []
            environment.services.note_released()
            await self.reporter.enter(Stage.COMMANDS)
            self.commands_began.set()
