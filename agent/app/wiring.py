"""Builds the agent from its parts. Only this module connects the parts with each other. It starts no task."""

from __future__ import annotations

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
    from agent.objects.grants import Issuer
    from agent.scheduler.classic.connection import ClassicConnection
    from agent.settings import Settings
    from agent.telemetry.traces import Traces

TIMINGS = AppTimings()


def build(
    settings: Settings,
    client: Client,
    task_group: asyncio.TaskGroup,
    traces: Traces,
    debug: DebugOptions | None = None,
    timings: AppTimings = TIMINGS,
) -> App:
    """Return an agent that is ready to run."""
    metrics = client.metrics
    classes = tuple(settings.environment.classes)
    identity = Identity.of(settings.agent.id, VERSION, agent_features(settings), classes)
    handlers = Handlers()
    # In the classic protocol, a session ends when its agent ends. No other agent can adopt the session, so the pod
    # becomes an orphan.
    classic = settings.scheduler.protocol == "classic"
    adopts = settings.agent.adoption and not classic

    # ---- parts that use the cluster
    namespace, pool = settings.cluster.namespace, settings.agent.pool
    watch = PodWatch(client, namespace, pool, metrics, identity.agent_id, on_change=handlers.pod_changed)
    # `ClusterFacts` is empty here. The agent asks the cluster for the facts while it runs, because the answer of the
    # cluster can be late, and a request to end the agent must not wait for the answer.
    facts = ClusterFacts()
    issuer = issuer_of(settings, identity.agent_id)
    pods = PodBackend(
        settings, client, watch, identity.agent_id, facts, debug=debug, issuer=issuer, timings=timings.environment
    )
    leases = Leases(client, settings, identity.agent_id, facts)
    sweep = Sweep(pods, settings.cluster.sweep_interval, leases.is_gone if classic else None, leases.is_gone)
    adoption = Adoption(pods, leases, handlers.adopt, open_for=handlers.may_adopt, timings=timings.adoption)

    # ---- parts that use the scheduler
    status = AgentStatus(settings, identity, client, pods, leases, sweep)
    limits = settings.scheduler
    outbox = Outbox(limits.window, metrics, limits.window_total, on_state_loss=handlers.reset)
    health = HealthReporter(status.health, outbox.wake)
    connection = connect(settings, identity, outbox, handlers, health, client)
    if isinstance(issuer, SchedulerIssuer) and isinstance(connection, Connection):
        issuer.connection = connection

    # ---- the sessions, which use the cluster and the scheduler
    sessions = SessionRegistry(
        settings,
        pods,
        # With the classic protocol, the events of an action go into the gRPC call for this action, not into the outbox.
        outbox if isinstance(connection, Connection) else connection,
        metrics,
        task_group,
        traces,
        on_change=health.notify,
        on_end=status.add_recent,
        timings=timings.session,
    )
    shutdown = Shutdown(settings, sessions, leases, health, timings, hands_over=adopts)

    # Sessions send through the connection, and the connection's requests reach the sessions. Sessions report changes of
    # the health, and the health counts the sessions. The two calls of `bind` close these two circles of references.
    handlers.bind(sessions, pods, shutdown)
    status.bind(sessions, connection)
    pods.warm.on_change = health.notify

    return App(
        settings=settings,
        client=client,
        task_group=task_group,
        metrics=metrics,
        watch=watch,
        facts=facts,
        pods=pods,
        leases=leases,
        sweep=sweep,
        adoption=adoption,
        adopts=adopts,
        outbox=outbox,
        health=health,
        connection=connection,
        sessions=sessions,
        status=status,
        shutdown=shutdown,
        http=Http(settings.http, metrics, status.not_ready, status.page),
        timings=timings,
    )


def issuer_of(settings: Settings, agent_id: str) -> Issuer | None:
    """Return the side that signs requests for the object store, None without a store."""
    match settings.objects.issuer:
        case "agent":
            return StoreIssuer(ObjectStore(settings.objects), settings.agent.pool)
        case "scheduler":
            return SchedulerIssuer(settings.objects, agent_id)
        case "none":
            return None


def connect(
    settings: Settings, identity: Identity, outbox: Outbox, handlers: Handlers, health: HealthReporter, client: Client
) -> Connection | ClassicConnection:
    """Return the connection to the scheduler for the protocol that the settings name."""
    if settings.scheduler.protocol == "classic":
        # Only an agent that speaks the classic protocol loads this module, and with it a gRPC server.
        from agent.scheduler.classic.connection import ClassicConnection

        return ClassicConnection(settings, handlers, client.metrics, health)
    return Connection(settings.scheduler, settings.agent, identity, outbox, handlers, client.metrics, health)
