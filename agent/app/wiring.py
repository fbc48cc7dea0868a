"""Builds the agent from its parts. Only this module connects the parts with each other. It starts no task.

`build` makes the parts of the cluster's side first, then those of the scheduler's side, and at last the sessions, which
use both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.app.agent import VERSION, App
from agent.app.handlers import Handlers
from agent.app.shutdown import Shutdown
from agent.app.status import AgentStatus
from agent.app.timings import AppTimings
from agent.cluster.capabilities import ClusterFacts
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.watch import PodWatch
from agent.cluster.ownership.adoption import Adoption
from agent.cluster.ownership.leases import Leases
from agent.cluster.ownership.orphans import Sweep
from agent.execution.admission import agent_features
from agent.execution.registry import SessionRegistry
from agent.http.server import Http
from agent.objects.grants import StoreIssuer
from agent.objects.store import ObjectStore
from agent.scheduler.stream.connection import Connection, Identity
from agent.scheduler.stream.grants import SchedulerIssuer
from agent.scheduler.stream.health import HealthReporter
from agent.scheduler.stream.outbox import Outbox

if TYPE_CHECKING:
    import asyncio

    from agent.cluster.api.client import Client
    from agent.cluster.environment.interactive.debugging import DebugOptions
    from agent.execution.ports import EventSink
    from agent.objects.grants import Issuer
    from agent.scheduler.classic.connection import ClassicConnection
    from agent.settings import Settings
    from agent.telemetry.traces import Traces

TIMINGS = AppTimings()


@dataclass(frozen=True, slots=True)
class Base:
    """What the parts of both sides need: the settings, the client of the cluster, and the name of the agent."""

    settings: Settings
    client: Client
    identity: Identity
    handlers: Handlers
    issuer: Issuer | None
    timings: AppTimings

    @property
    def classic(self) -> bool:
        return self.settings.scheduler.protocol == "classic"


@dataclass(frozen=True, slots=True)
class ClusterParts:
    """The parts that use the cluster."""

    watch: PodWatch
    facts: ClusterFacts
    pods: PodBackend
    leases: Leases
    sweep: Sweep
    adoption: Adoption


@dataclass(frozen=True, slots=True)
class SchedulerParts:
    """The parts that use the scheduler."""

    outbox: Outbox
    health: HealthReporter
    connection: Connection | ClassicConnection

    @property
    def sink(self) -> EventSink:
        """Return where sessions send their events.

        With the classic protocol, the events of an action go into the gRPC call for this action, not into the outbox.
        """
        return self.outbox if isinstance(self.connection, Connection) else self.connection


def build(
    settings: Settings,
    client: Client,
    task_group: asyncio.TaskGroup,
    traces: Traces,
    debug: DebugOptions | None = None,
    timings: AppTimings = TIMINGS,
) -> App:
    """Return an agent that is ready to run."""
    identity = Identity.of(settings.agent.id, VERSION, agent_features(settings), tuple(settings.environment.classes))
    base = Base(settings, client, identity, Handlers(), issuer_of(settings, identity.agent_id), timings)
    # In the classic protocol, a session ends when its agent ends. No other agent can adopt the session, so the pod
    # becomes an orphan.
    adopts = settings.agent.adoption and not base.classic

    cluster = build_cluster_parts(base, debug)
    status = AgentStatus(settings, identity, client, cluster.pods, cluster.leases, cluster.sweep)
    scheduler = build_scheduler_parts(base, status)
    sessions = SessionRegistry(
        settings,
        cluster.pods,
        scheduler.sink,
        client.metrics,
        task_group,
        traces,
        on_change=scheduler.health.notify,
        on_end=status.add_recent,
        timings=timings.session,
    )
    shutdown = Shutdown(settings, sessions, cluster.leases, scheduler.health, timings, hands_over=adopts)

    # Sessions send through the connection, and the connection's requests reach the sessions. Sessions report changes of
    # the health, and the health counts the sessions. The two calls of `bind` close these two circles of references.
    base.handlers.bind(sessions, cluster.pods, shutdown)
    status.bind(sessions, scheduler.connection)
    cluster.pods.warm.on_change = scheduler.health.notify

    return App(
        settings=settings,
        client=client,
        task_group=task_group,
        metrics=client.metrics,
        watch=cluster.watch,
        facts=cluster.facts,
        pods=cluster.pods,
        leases=cluster.leases,
        sweep=cluster.sweep,
        adoption=cluster.adoption,
        adopts=adopts,
        outbox=scheduler.outbox,
        health=scheduler.health,
        connection=scheduler.connection,
        sessions=sessions,
        status=status,
        shutdown=shutdown,
        http=Http(settings.http, client.metrics, status.not_ready, status.page),
        timings=timings,
    )


def build_cluster_parts(base: Base, debug: DebugOptions | None) -> ClusterParts:
    """Return the parts that watch, create, adopt and delete pods."""
    settings, client, agent_id, timings = base.settings, base.client, base.identity.agent_id, base.timings
    namespace, pool = settings.cluster.namespace, settings.agent.pool
    watch = PodWatch(client, namespace, pool, client.metrics, agent_id, on_change=base.handlers.pod_changed)
    # `ClusterFacts` is empty here. The agent asks the cluster for the facts while it runs, because the answer of the
    # cluster can be late, and a request to end the agent must not wait for the answer.
    facts = ClusterFacts()
    pods = PodBackend(
        settings, client, watch, agent_id, facts, debug=debug, issuer=base.issuer, timings=timings.environment
    )
    leases = Leases(client, settings, agent_id, facts)
    sweep = Sweep(pods, settings.cluster.sweep_interval, leases.is_gone if base.classic else None, leases.is_gone)
    adoption = Adoption(pods, leases, base.handlers.adopt, open_for=base.handlers.may_adopt, timings=timings.adoption)
    return ClusterParts(watch, facts, pods, leases, sweep, adoption)


def build_scheduler_parts(base: Base, status: AgentStatus) -> SchedulerParts:
    """Return the parts that send events and health to the scheduler, and that get its requests."""
    limits = base.settings.scheduler
    outbox = Outbox(limits.window, base.client.metrics, limits.window_total, on_state_loss=base.handlers.reset)
    health = HealthReporter(status.health, outbox.wake)
    connection = connect(base, outbox, health)
    if isinstance(base.issuer, SchedulerIssuer) and isinstance(connection, Connection):
        base.issuer.connection = connection
    return SchedulerParts(outbox, health, connection)


def issuer_of(settings: Settings, agent_id: str) -> Issuer | None:
    """Return the side that signs requests for the object store, None without a store."""
    match settings.objects.issuer:
        case "agent":
            return StoreIssuer(ObjectStore(settings.objects), settings.agent.pool)
        case "scheduler":
            return SchedulerIssuer(settings.objects, agent_id)
        case "none":
            return None


def connect(base: Base, outbox: Outbox, health: HealthReporter) -> Connection | ClassicConnection:
    """Return the connection to the scheduler for the protocol that the settings name."""
    settings, metrics = base.settings, base.client.metrics
    if base.classic:
        # Only an agent that speaks the classic protocol loads this module, and with it a gRPC server.
        from agent.scheduler.classic.connection import ClassicConnection

        return ClassicConnection(settings, base.handlers, metrics, health)
    return Connection(settings.scheduler, settings.agent, base.identity, outbox, base.handlers, metrics, health)
