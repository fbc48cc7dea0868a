"""An agent that speaks the classic protocol and has a cluster in memory, with the fake SealCI 0.2 scheduler."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agent.domain.session_state import Health, Readiness
from agent.execution.registry import SessionRegistry
from agent.scheduler.classic.connection import ClassicConnection
from agent.scheduler.classic.timings import ClassicTimings
from agent.scheduler.stream.health import HealthReporter
from agent.settings import Settings
from agent.telemetry.metrics import Metrics
from tests.fakes.classic import ClassicScheduler, Entry
from tests.fakes.cluster import FakeBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Action, Cancel

DEADLINE = 30.0


class World:
    """The classic connection and the sessions of one agent, with a fake scheduler and a fake cluster.

    If a test passes `scheduler`, several worlds share this scheduler, and the test starts and stops it.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        classic: dict[str, Any],
        agent: dict[str, Any],
        scheduler: ClassicScheduler | None = None,
    ) -> None:
        self.scheduler = scheduler or ClassicScheduler()
        self.shares = scheduler is not None
        self.backend = FakeBackend()
        self.metrics = Metrics()
        self.classic_settings = classic
        self.agent_settings = agent
        self.tasks = tasks
        self.timings = ClassicTimings(gather=0.005)
        self.connection: ClassicConnection
        self.sessions: SessionRegistry
        self.running: asyncio.Task[None]

    async def start(self) -> None:
        """Start the scheduler and the agent. If the cluster is reachable, wait until the agent has registered."""
        if not self.shares:
            await self.scheduler.start()
        settings = Settings.model_validate(
            {
                "scheduler": {
                    "address": self.scheduler.address,
                    "protocol": "classic",
                    "tls": {"enabled": False},
                    "reconnect_max": 0.05,
                    "classic": {"listen": "127.0.0.1", "port": 0, "echo": False} | self.classic_settings,
                },
                "agent": {"slots": 2} | self.agent_settings,
            }
        )
        health = HealthReporter(self.health, asyncio.Event())
        self.connection = ClassicConnection(settings, self, self.metrics, health, self.timings)  # type: ignore[arg-type]  # what it calls is here
        self.sessions = SessionRegistry(
            settings, self.backend, self.connection, self.metrics, self.tasks, on_change=health.notify
        )
        self.running = self.tasks.create_task(self.connection.run(), name="classic")
        if self.backend.reachable:
            await self.scheduler.until("the agent has reported its health", lambda: self.reported)

    @property
    def entry(self) -> Entry:
        """Return the last entry of this agent in the scheduler's pool."""
        return [each for each in self.scheduler.pool.values() if each.port == self.connection.port][-1]

    @property
    def reported(self) -> bool:
        """Return whether this agent is in the scheduler's pool and has reported its health."""
        return any(each.port == self.connection.port and len(each.health) > 1 for each in self.scheduler.pool.values())

    def health(self) -> Health:
        draining, reachable = self.sessions.draining, self.backend.reachable
        status = Readiness.DRAINING if draining else Readiness.READY if reachable else Readiness.DEGRADED
        why = "" if reachable else "the cluster does not answer"
        return Health(status, self.sessions.settings.agent.slots, self.sessions.used, message=why)

    def action(self, action: Action) -> None:
        self.sessions.action(action)

    def cancel(self, attempt_key: tuple[str, int], cancel: Cancel) -> None:
        self.sessions.cancel(attempt_key, cancel)

    async def stop(self) -> None:
        """Drain the sessions and close the connection, in the same order as the real agent."""
        self.sessions.drain("the test has ended")
        await self.sessions.idle()
        await self.connection.close()
        await self.running
        if not self.shares:
            await self.scheduler.stop()

    def clean(self) -> bool:
        """Return whether the agent has no environment, no session and no call left."""
        return not self.backend.alive and not self.sessions.sessions and not self.connection.service.calls

    async def until_clean(self) -> None:
        """Wait until the agent has no environment, no session and no call left."""
        await self.sessions.idle()
        await self.backend.until("every environment is removed", lambda: not self.backend.alive)
        assert self.clean()


@asynccontextmanager
async def worlds(
    *,
    agent: dict[str, Any] | None = None,
    scheduler: ClassicScheduler | None = None,
    reachable: bool = True,
    timings: ClassicTimings | None = None,
    **classic: Any,
) -> AsyncIterator[World]:
    """Run one agent with its fake scheduler and fake cluster while the block runs.

    At the end, check that the agent has no environment, no session and no gRPC call left.
    """
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        world = World(tasks, classic, agent or {}, scheduler)
        world.backend.reachable = reachable
        world.timings = timings or world.timings
        try:
            await world.start()
            yield world
            await world.until_clean()
            await world.stop()
        finally:
            if not world.shares:
                await world.scheduler.stop()


async def running_environment(world: World) -> Any:
    """Wait until a session reads the log of an environment. Return this environment."""
    await world.backend.until(
        "the log of an environment is read",
        lambda: any("log" in each.steps for each in world.backend.environments.values()),
    )
    return next(each for each in world.backend.environments.values() if "log" in each.steps)
