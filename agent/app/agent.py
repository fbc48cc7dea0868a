"""The agent as a whole: starts its parts, waits until the agent is asked to stop, and ends the parts in order.

One `App` lives as long as the process (`serve`) or a pipeline (`run`). All tasks run in one task group, and each task
has a name for log lines. The failure of one of these tasks ends the process, because a restart is better than an agent
without one of its parts. The order at the end is: drain, sessions end, the stream is closed, the other parts are
cancelled.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog

from agent.aio import run_until_set
from agent.cluster.capabilities import learn_facts
from agent.cluster.ownership import owner_reference

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agent.app.shutdown import Shutdown
    from agent.app.status import AgentStatus
    from agent.app.timings import AppTimings
    from agent.cluster.api.client import Client
    from agent.cluster.capabilities import ClusterFacts
    from agent.cluster.environment.backend import PodBackend
    from agent.cluster.environment.watch import PodWatch
    from agent.cluster.ownership.adoption import Adoption
    from agent.cluster.ownership.leases import Leases
    from agent.cluster.ownership.orphans import Sweep
    from agent.execution.registry import SessionRegistry
    from agent.http.server import Http
    from agent.scheduler.classic.connection import ClassicConnection
    from agent.scheduler.stream.connection import Connection
    from agent.scheduler.stream.health import HealthReporter
    from agent.scheduler.stream.outbox import Outbox
    from agent.settings import Settings
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

VERSION = version("sealci-agent")
# Seconds that an agent without sessions waits for the deletion of its warm pods. Another agent sweeps what is left.
WARM_END_SECONDS = 10.0


@dataclass(eq=False, slots=True, kw_only=True)
class App:
    """One agent, built by `wiring.build`. `adopts` is whether the agents of this pool adopt each other's sessions."""

    settings: Settings
    client: Client
    task_group: asyncio.TaskGroup
    metrics: Metrics
    watch: PodWatch
    facts: ClusterFacts
    pods: PodBackend
    leases: Leases
    sweep: Sweep
    adoption: Adoption
    adopts: bool
    outbox: Outbox
    health: HealthReporter
    connection: Connection | ClassicConnection
    sessions: SessionRegistry
    status: AgentStatus
    shutdown: Shutdown
    http: Http
    timings: AppTimings

    def stop(self, why: str) -> None:
        """Ask the agent to accept no more actions, and to exit when its sessions have ended or were handed over.

        A second request stops the sessions. `why` is the cause of the request, for the log.
        """
        self.shutdown.request(why)

    async def run(self) -> None:
        """Run until the agent is asked to stop, then end all parts in order."""
        started = asyncio.Event()
        http = self.start(self.http.run(started), "http")
        async with asyncio.timeout(self.timings.http_start):
            await started.wait()
        log.info("serving metrics and probes", port=self.http.port)
        if not await self.resolve_owner():
            http.cancel()
            log.info("left before anything was begun")
            return
        roots = [http, *self.start_parts()]
        await self.shutdown.requested.wait()
        self.pods.warm.drain()
        handed_over = await self.shutdown.end_sessions()
        await self.pods.warm.wait_until_empty(WARM_END_SECONDS)
        await self.connection.close()
        for root in roots:
            root.cancel()
        if self.settings.agent.adoption:
            await self.leases.release()
        log.info("left", finished=self.sessions.finished, handed_over=handed_over)

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self.task_group.create_task(work, name=name)

    def start_parts(self) -> list[asyncio.Task[None]]:
        """Start all parts that run until the end of the agent. Returns their tasks."""
        parts = [
            self.start(self.watch.run(), "pod watch"),
            self.start(self.watch_cluster_health(), "cluster health"),
            self.start(self.detect_capabilities(), "capabilities of the cluster"),
            self.start(self.sweep.run(), "orphan sweep"),
            self.start(self.pods.warm.run(), "warm pods"),
            self.start(self.connection.run(), "scheduler"),
        ]
        if self.settings.agent.adoption:
            parts += [self.start(self.leases.keep(), "own lease"), self.start(self.leases.run(), "lease watch")]
        if self.adopts:
            parts.append(self.start(self.adoption.run(), "adoption"))
        return parts

    async def resolve_owner(self) -> bool:
        """Find the object that owns all pods and Leases of this agent.

        Returns False if the agent is asked to stop before the object is found.
        """
        search = owner_reference.find(self.client, self.settings)
        task = await run_until_set(search, self.shutdown.requested, name="owner reference")
        if task is None:
            return False
        self.facts.set_owner(task.result())
        return True

    async def watch_cluster_health(self) -> None:
        """Report each change in the cluster's health to the scheduler.

        While the API server does not answer, send a test request to the API server at an interval.
        """
        reported = None
        while True:
            trouble = self.status.trouble
            if reported != trouble:
                reported = trouble
                log.info("the cluster's health changed", trouble=trouble or "none")
                self.metrics.degraded.set(bool(trouble))
                self.health.notify()
            if not self.client.reachable:
                # `reachable` stays False until the API server answers a request, and sessions may send no request
                # for minutes.
                await self.client.probe()
            await asyncio.sleep(self.timings.cluster_poll)

    async def detect_capabilities(self) -> None:
        """Ask the API server what the cluster supports. The agent accepts no action before the answer."""
        await learn_facts(self.facts, self.client, self.settings)
