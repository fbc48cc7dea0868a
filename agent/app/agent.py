"""The agent as a whole: every part is made, joined and started here, and ends here.

One `App` lives as long as the process (`serve`) or a pipeline (`run`). All tasks are born in one task group with names
a person understands; the death of a root task ends the process, because an agent with a part missing is worse than one
that is restarted. Leaving is in this order: drain, sessions end, the stream is closed, the rest is cancelled.
"""

from __future__ import annotations

import asyncio
from collections import deque
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog

from agent.cluster.api.client import Client
from agent.cluster.environment.backend import Pods
from agent.cluster.environment.capabilities import user_namespaces
from agent.cluster.environment.watch import PodWatch
from agent.cluster.ownership import owner_reference
from agent.cluster.ownership.adoption import Adoption
from agent.cluster.ownership.leases import Leases
from agent.cluster.ownership.orphans import Sweep
from agent.domain.errors import Refused, SettingsError
from agent.domain.session_state import Health, Readiness
from agent.execution.registry import Sessions
from agent.http.server import Http
from agent.http.status_page import Snapshot, page, seen
from agent.scheduler.stream.connection import Connection, Identity
from agent.scheduler.stream.health import HealthReporter
from agent.scheduler.stream.outbox import Outbox
from agent.telemetry.metrics import Metrics
from agent.telemetry.traces import Traces

if TYPE_CHECKING:
    from agent.cluster.environment.debugging import Workbench
    from agent.cluster.environment.environment import PodEnvironment
    from agent.domain.actions import Action, Cancel, Key
    from agent.domain.errors import ActionFailed
    from agent.domain.session_state import Resume
    from agent.http.status_page import SessionRow
    from agent.scheduler.classic.connection import ClassicConnection
    from agent.settings import Settings

log = structlog.get_logger(__name__)

VERSION = version("sealci-agent")
REFUSED = 4
HTTP_START = 10.0
NOTICE = 1.0
LAST_WORDS = 2.0
MOST_ADOPTED = 500
LATELY = 50


class App:
    """One agent. `stop` asks it to leave; a second time, at once."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        tasks: asyncio.TaskGroup,
        traces: Traces,
        workbench: Workbench | None = None,
    ) -> None:
        self.identity = identity = Identity.of(settings.agent.id, VERSION)
        self.settings = settings
        self.client = client
        self.tasks = tasks
        self.metrics = client.metrics
        self.watch = PodWatch(client, settings.cluster.namespace, settings.agent.pool, self.metrics, identity.agent_id)
        self.pods = Pods(settings, client, self.watch, self.metrics, identity.agent_id)
        self.pods.workbench = workbench
        self.outbox = Outbox(settings.scheduler.window, self.metrics, settings.scheduler.window_total)
        self.health = HealthReporter(self.current_health, self.outbox.wake)
        self.classic: ClassicConnection | None = None
        if settings.scheduler.protocol == "classic":
            # Its contract and its server are loaded by those who speak it.
            from agent.scheduler.classic.connection import ClassicConnection

            self.classic = ClassicConnection(settings, self, self.metrics, self.health)
        self.connection = self.classic or Connection(
            settings.scheduler, settings.agent, identity, self.outbox, self, self.metrics, self.health
        )
        self.sessions = Sessions(settings, self.pods, self.classic or self.outbox, self.metrics, tasks, traces)
        self.sessions.on_change = self.health.notify
        self.outbox.on_state_loss = self.sessions.forgotten
        self.http = Http(settings.http, self.metrics, self.not_ready, self.page)
        self.lately: deque[SessionRow] = deque(maxlen=LATELY)
        self.sessions.on_end = lambda session: self.lately.appendleft(seen(session))
        self.leases = Leases(client, settings, identity.agent_id)
        self.adoption = Adoption(self.pods, self.leases, self.adopt, open_for=self.may_adopt)
        self.watch.on_change = self.notice_claim
        # Over the classic wire a session ends with its agent: nobody can go on with it, it is remains.
        self.adopts = settings.agent.adoption and self.classic is None
        departed = self.leases.departed if self.classic is not None else None
        self.sweep = Sweep(self.pods, settings.cluster.sweep_interval, departed)
        self.stopping = asyncio.Event()
        self.stopping_now = asyncio.Event()

    # ---- what the scheduler says

    def registered(self, interval: float, grace: float) -> None:
        """Take note of a registration."""

    def action(self, action: Action) -> None:
        """Run an action."""
        self.sessions.action(action)

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        """Answer an action that cannot be read."""
        self.sessions.action_failed(key, failure)

    def cancel(self, attempt_key: tuple[str, int], cancel: Cancel) -> None:
        """End a session."""
        self.sessions.cancel(attempt_key, cancel)

    def resume(self, resume: Resume) -> None:
        """Go on with a session."""
        self.sessions.resume(resume)

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        """Drop a session."""
        self.sessions.discard(key, claimed_by_other, message)

    def drain(self, message: str) -> None:
        """Leave when the sessions are done."""
        self.stop(message or "the scheduler asked for it")

    # ---- what other agents do

    def may_adopt(self) -> bool:
        """Whether sessions of departed agents are taken: not while leaving, and not without bound."""
        return not self.sessions.draining and self.sessions.used < self.settings.agent.slots + MOST_ADOPTED

    def adopt(self, environment: PodEnvironment) -> bool:
        """Go on with a session that was claimed; False when it cannot be yet."""
        return self.sessions.adopt(environment.plan.action, environment)

    def notice_claim(self, pod: dict[str, Any]) -> None:
        """Drop a session that another agent has claimed."""
        environment = self.pods.superseded(pod)
        if environment is not None:
            self.sessions.superseded(environment.plan.action.key.attempt_key)

    # ---- how it is

    @property
    def trouble(self) -> str:
        """Why the cluster cannot be used, for people; "" when it can.

        An agent that the others cannot see alive takes nothing: they would take it away.
        """
        if self.pods.trouble or self.leases.alive or not self.settings.agent.adoption:
            return self.pods.trouble
        return "the agent's Lease could not be renewed"

    def current_health(self) -> Health:
        """Return what the scheduler is told."""
        trouble = self.trouble
        status = Readiness.DRAINING if self.sessions.draining else Readiness.DEGRADED if trouble else Readiness.READY
        return Health(
            status=status,
            slots=self.settings.agent.slots,
            running=self.sessions.used,
            cluster_reachable=self.client.reachable,
            message=trouble,
            remains=self.sweep.remaining,
        )

    def page(self) -> str:
        """Return the status page."""
        return page(
            Snapshot(
                version=VERSION,
                pool=self.settings.agent.pool,
                agent_id=self.identity.agent_id,
                health=self.current_health(),
                not_ready=self.not_ready(),
                finished=self.sessions.finished,
                running=[seen(session) for session in self.sessions.living.values() if session.outcome is None],
                lately=list(self.lately),
            )
        )

    def not_ready(self) -> str:
        """Say why no action is taken now; "" when one is."""
        if self.sessions.draining:
            return "draining"
        if self.trouble:
            return self.trouble
        return "" if self.connection.registered else "not registered with the scheduler"

    # ---- life

    async def run(self) -> None:
        """Live until asked to leave, then leave in order."""
        started = asyncio.Event()
        roots = [self.tasks.create_task(self.http.run(started), name="http")]
        async with asyncio.timeout(HTTP_START):
            await started.wait()
        log.info("serving metrics and probes", port=self.http.port)
        if not await self.anchored():
            roots[0].cancel()
            log.info("left before anything was begun")
            return
        roots += [
            self.tasks.create_task(self.watch.run(), name="pod watch"),
            self.tasks.create_task(self.notice_cluster(), name="cluster health"),
            self.tasks.create_task(self.learn(), name="what the cluster can do"),
            self.tasks.create_task(self.sweep.run(), name="sweep"),
            self.tasks.create_task(self.connection.run(), name="scheduler"),
        ]
        if self.settings.agent.adoption:
            roots += [
                self.tasks.create_task(self.leases.keep(), name="own lease"),
                self.tasks.create_task(self.leases.run(), name="lease watch"),
            ]
        if self.adopts:
            roots.append(self.tasks.create_task(self.adoption.run(), name="adoption"))
        await self.stopping.wait()
        handed_over = await self.leave()
        await self.connection.close()
        for root in roots:
            root.cancel()
        if self.settings.agent.adoption:
            await self.leases.release()
        log.info("left", finished=self.sessions.finished, handed_over=handed_over)

    async def anchored(self) -> bool:
        """Learn who owns what this agent makes; False when it is asked to leave before that is known."""
        finding = asyncio.create_task(owner_reference.find(self.client, self.settings), name="anchor")
        stopping = asyncio.create_task(self.stopping.wait(), name="stop")
        try:
            await asyncio.wait({finding, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not finding.done():
                return False
            self.pods.owner = self.leases.owner = finding.result()
            return True
        finally:
            for task in (finding, stopping):
                task.cancel()
            await asyncio.wait({finding, stopping})

    async def leave(self) -> int:
        """Wait for the sessions; hand over those that take too long, or end them when asked twice.

        A cluster that refuses the agent meanwhile has lost its release: nothing can be waited for then.

        Returns how many were handed over.
        """
        handed_over = 0
        idle = asyncio.create_task(self.sessions.idle(), name="sessions end")
        at_once = asyncio.create_task(self.stopping_now.wait(), name="stop at once")
        gone = asyncio.create_task(self.leases.refused.wait(), name="release gone")
        try:
            await asyncio.wait(
                {idle, at_once, gone}, timeout=self.settings.agent.drain_timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if not idle.done() and self.adopts and not at_once.done():
                handed_over = self.sessions.hand_over()
            elif not idle.done():
                log.warning("ending sessions", running=self.sessions.used)
                self.sessions.cancel_all("the agent was stopped")
            await asyncio.wait({idle, gone}, timeout=self.longest_end(), return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not idle.done():
                log.warning("the cluster refuses this agent: its release is gone, and what it made goes with that")
                await asyncio.wait({idle}, timeout=LAST_WORDS)
                self.sessions.forsake()
            self.sessions.abandon()
        finally:
            for task in (idle, at_once, gone):
                task.cancel()
            await asyncio.wait({idle, at_once, gone})
        return handed_over

    def longest_end(self) -> float:
        """Return how long sessions may take to end and clean after they were told to."""
        return self.settings.environment.grace + 2 * self.settings.cluster.delete_timeout + 60

    async def notice_cluster(self) -> None:
        """Tell each change of what is wrong with the cluster, and ask it while it does not answer."""
        seen = None
        while True:
            if seen != self.trouble:
                seen = self.trouble
                log.info("the cluster", trouble=seen or "none")
                self.metrics.degraded.set(bool(seen))
                self.health.notify()
            if not self.client.reachable:
                # Sessions may have no reason to ask for minutes, and only an answer makes it reachable again.
                await self.client.probe()
            await asyncio.sleep(NOTICE)

    async def learn(self) -> None:
        """Ask what the cluster can do; no action is taken before it is known."""
        self.pods.user_namespaces = await user_namespaces(self.client, self.settings)
        self.pods.known = True

    def stop(self, why: str) -> None:
        """Ask to leave; asked again, sessions are cancelled."""
        if self.stopping.is_set():
            log.warning("stopping at once", why=why)
            self.stopping_now.set()
            return
        self.sessions.drain(why)
        self.health.notify()
        self.stopping.set()


async def serve(
    settings: Settings, on_start: asyncio.Future[App] | None = None, workbench: Workbench | None = None
) -> int:
    """Run one agent to its end; returns the exit code of the process.

    Raises:
        SettingsError: there is no cluster to use, or no library for traces.
        OSError: the port for metrics cannot be had.
    """
    traces = tracing(settings)
    client = await Client.connect(settings.cluster, Metrics(VERSION, settings.metrics))
    code = 0
    try:
        async with asyncio.TaskGroup() as tasks:
            app = App(settings, client, tasks, traces, workbench)
            if on_start is not None:
                on_start.set_result(app)
            await app.run()
    except ExceptionGroup as group:
        # The first root task that failed has ended the others; who called wants its error, not a group.
        first = group.exceptions[0]
        if not isinstance(first, Refused):
            raise first from group
        log.error("the scheduler refuses this version of the agent", reason=str(first))
        code = REFUSED
    finally:
        await client.close()
        await asyncio.to_thread(traces.close)
    return code


def tracing(settings: Settings) -> Traces:
    """Return where traces go.

    Raises:
        SettingsError: traces are asked for, and the libraries are not there.
    """
    if not settings.traces.endpoint:
        return Traces()
    try:
        from agent.telemetry.otel import OpenTelemetry
    except ImportError as error:
        missing = f"traces.endpoint: the extra `otel` is not installed (pip install sealci-agent[otel]): {error}"
        raise SettingsError(missing) from error
    return OpenTelemetry(settings.traces, settings.agent, VERSION)


def stop_when_made(made: asyncio.Future[App], why: str) -> None:
    """Ask an agent to leave, also when it is only being made."""
    if made.done():
        made.result().stop(why)
    else:
        made.add_done_callback(lambda made: made.result().stop(why))
