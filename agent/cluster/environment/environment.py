"""One environment: a pod with its Secret. Creates, follows, interrupts and removes it, and brings its bytes out.

The cluster's side of `execution.backend.Environment`. A `PodEnvironment` lives as long as its session. It costs three
requests to the API (create, log, delete), one more for files and one for secrets; the rest comes from the shared watch.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.cluster.api import exec as execs
from agent.cluster.artifacts import collect
from agent.cluster.artifacts.archive_reader import Limits as ArchiveLimits
from agent.cluster.environment import failure_report
from agent.cluster.environment.action_container import ActionContainer
from agent.cluster.environment.creation import create_pod, create_secret
from agent.cluster.environment.deletion import UNBEGUN, delete_pod, own_uid
from agent.cluster.logs import follower, request
from agent.cluster.pod import manifest
from agent.cluster.pod.fields import container_status
from agent.cluster.pod.setup_status import Expectations, FirstSeen
from agent.cluster.pod.setup_timing import SetupTiming
from agent.cluster.pod.status import classify
from agent.cluster.pod.timestamps import parse_timestamp
from agent.cluster.supervisor import command
from agent.cluster.supervisor.markers import MarkerReader
from agent.domain.errors import ActionFailed, ClusterError, Stage
from agent.domain.json import Object
from agent.domain.observations import FINAL, Lost, SetupFailed
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from agent.cluster.environment.backend import Pods
    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FilePart
    from agent.domain.log_cursor import Cursor
    from agent.domain.observations import Collected, LogGap, LogLost, LogPiece, Observation
    from agent.domain.outcome import Outcome

log = structlog.get_logger(__name__)


class PodEnvironment:
    """One pod with its Secret."""

    def __init__(self, pods: Pods, plan: manifest.Plan) -> None:
        self.pods = pods
        self.plan = plan
        self.client = pods.client
        self.path = f"/api/v1/namespaces/{plan.namespace}/pods"
        self.uid = ""
        self.filled = ""  # the uid of the pod whose workspace is complete
        self.asked = False
        self.left = False
        self.model: Object | None = None  # of an adopted pod, from which it can be made again
        self.hold()
        self.expectations = Expectations(
            nonce=plan.nonce,
            commands=len(plan.action.commands),
            secret=plan.name,
            wants_files=plan.wants_files,
        )

    def hold(self) -> None:
        """Begin to follow the pod, and keep the sweep off it; again when it is made again after `remove`."""
        self.watched = self.pods.watch.watch(self.plan.name)
        self.first_seen = FirstSeen()
        self.timeline: SetupTiming | None = None
        self.container = ActionContainer(self.watched)
        self.slow_start = failure_report.SlowStart(self.client, self.path)
        self.pods.held[self.plan.name] = self
        self.pods.metrics.environments.set(len(self.pods.held))

    @property
    def name(self) -> str:
        """Where it is, for people."""
        return f"{self.plan.namespace}/{self.plan.name}"

    # ---- set-up

    async def create(self, tell: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Make the pod and, at once after it, its Secret with the pod as its only owner; `tell` hears what is awaited.

        Raises:
            ActionFailed: the cluster refuses it for good, or could not be reached for too long.
        """
        settings = self.pods.settings
        body = self.model or manifest.pod(self.plan, settings)

        async def waits(why: str) -> None:
            if tell is not None:
                await tell(f"waiting for the cluster: {why}")

        if self.plan.name not in self.pods.held:
            self.hold()
        self.asked, self.uid, self.timeline = True, "", SetupTiming(time.monotonic())
        try:
            made = await self.client.patiently(
                "create pod",
                lambda: create_pod(self.client, self.path, body),
                seconds=settings.policy.pending_timeout,
                tell=waits,
            )
            self.uid = made["metadata"]["uid"]
            self.pods.watch.take("ADDED", made)
            if self.plan.action.secrets:
                await create_secret(self.client, manifest.secret(self.plan, settings, self.uid), waits)
        except ClusterError as error:
            text = f"the environment cannot be created: {error.message}"
            raise ActionFailed(Stage.SETUP, error.reason, text, log=failure_report.refused(error)) from error

    async def take_over(self, values: Mapping[str, str]) -> None:
        """Learn the secrets of an adopted session, and make its Secret if the pod still waits for it."""
        action = replace(self.plan.action, secrets=dict(values))
        self.plan = replace(self.plan, action=action)
        if values and self.container.state is follower.ContainerState.WAITING:
            try:
                await create_secret(self.client, manifest.secret(self.plan, self.pods.settings, self.uid))
            except ClusterError as error:
                raise ActionFailed(
                    Stage.SETUP, error.reason, error.message, log=failure_report.refused(error)
                ) from error

    @property
    def repeatable(self) -> bool:
        """Whether `create` can make it again."""
        return self.model is not None or bool(self.plan.action.image)

    @property
    def running_for(self) -> float:
        """How many seconds the container of the commands has been running, by the cluster's clock; 0 before."""
        status = container_status((self.watched.pod or {}).get("status", {}), manifest.ACTION) or {}
        started = parse_timestamp(status.get("state", {}).get("running", {}).get("startedAt"))
        return max(0.0, (self.client.now() - started).total_seconds()) if started else 0.0

    # ---- what happens

    async def observations(self) -> AsyncGenerator[Observation, None]:
        """Yield what is seen, on every change; ends after the first final observation."""
        previous: Observation | None = None
        while True:
            version = self.watched.version
            pod, now = self.watched.pod, time.monotonic()
            judgement = classify(
                pod, self.expectations, self.pods.limits, self.first_seen, now, self.client.now(), self.watched.last
            )
            if self.timeline:
                self.timeline.record(self.pods.metrics, pod, judgement.observation, now)
            seen = await self.slow_start.told(pod, judgement.observation, now)
            if seen != previous:
                previous = seen
                yield await self.explained(previous)
                if isinstance(previous, FINAL):
                    return
            rechecks = (judgement.recheck, self.slow_start.recheck(now))
            await self.watched.change(version, min((each for each in rechecks if each is not None), default=None))

    async def explained(self, seen: Observation) -> Observation:
        """Add the text for a person to an observation that nobody would understand without it."""
        if isinstance(seen, (SetupFailed, Lost)):
            return await failure_report.explained(self.client, self.path, self.watched.pod or self.watched.last, seen)
        return seen

    def markers(self) -> MarkerReader:
        """Return a fresh reader for the markers of this environment's log."""
        return MarkerReader(self.plan.nonce)

    async def log(self, cursor: Cursor) -> AsyncGenerator[LogPiece | LogGap | LogLost, None]:
        """Yield the log of the commands from the cursor to its end."""
        target = request.Target(self.plan.namespace, self.plan.name, manifest.ACTION)
        self.container.log_ended = False
        settings = self.pods.settings.logs
        patience = follower.Patience(probe=settings.probe_after)
        items = follower.follow(self.client, target, cursor, self.container, patience, settings.node_limit)
        async with aclosing(items):
            async for item in items:
                yield item

    def log_ended(self) -> None:
        """Take note that the supervisor's last marker was seen."""
        self.container.log_ended = True

    async def interrupt(self, grace: float) -> bool:
        """Send TERM to the commands and KILL after `grace` seconds; False when the pod cannot be reached."""
        target = execs.Target(self.plan.namespace, self.plan.name, manifest.ACTION)
        self.expectations = replace(self.expectations, interrupted=True)
        try:
            await execs.run(self.client, target, command.interrupt(grace), seconds=grace + 10)
        except ClusterError as error:
            # The container may end, and its exec with it, before the exec can tell: the watch knows better.
            log.info("the exec that stops the commands did not end by itself", error=error.message)
            return error.status == 0 and not isinstance(error, execs.ExecDeadline)
        return True

    # ---- files

    async def files(self, rules: ArtifactRules, seconds: float) -> AsyncGenerator[FilePart | Collected, None]:
        """Copy files out within `seconds`, the wait for a turn included; the last item is `Collected`."""
        settings = self.pods.settings.artifacts
        end = time.monotonic() + seconds

        def open_exec(argv: list[str], seconds: float) -> execs.ExecStream:
            return execs.ExecStream(self.client, self.holder, argv, seconds=seconds)

        async with self.pods.copies:
            limits = ArchiveLimits(
                files=settings.max_files,
                file_bytes=settings.max_file_size,
                total_bytes=settings.max_total_size,
                seconds=max(0.0, end - time.monotonic()),
            )
            workspace = self.pods.settings.environment.workspace
            async with aclosing(collect.collect(open_exec, rules, limits, workspace=workspace)) as items:
                async for item in items:
                    yield item

    # ---- somebody's own `run`

    @property
    def attended(self) -> bool:
        """Whether a person at a terminal has a hand in the environment."""
        return self.pods.workbench is not None

    async def fill(self) -> None:
        """Bring the person's tree into the workspace."""
        # A session that tells everything again comes here again, and its commands may run.
        if self.pods.workbench is not None and self.filled != self.uid:
            await self.pods.workbench.fill(self.client, self.holder, self.pods.settings.environment.workspace)
            self.filled = self.uid

    async def linger(self, outcome: Outcome) -> str:
        """Let the person look inside before it is removed, or keep it; returns what the cluster says of a failure."""
        bench, pod = self.pods.workbench, self.watched.pod
        if bench is None or pod is None or outcome.result is Result.CANCELLED:
            return ""
        workspace = self.pods.settings.environment.workspace
        said = await bench.look(self.client, self.path, pod, outcome, self.holder, workspace)
        if bench.keep:
            self.leave()
        return said

    @property
    def holder(self) -> execs.Target:
        """The container that holds the workspace."""
        return execs.Target(self.plan.namespace, self.plan.name, manifest.FILES)

    # ---- remains

    def leave(self) -> None:
        """Have nothing to do with the pod any more: it is another agent's, or shall become one's."""
        self.left = True
        self.pods.left[self.plan.nonce] = time.monotonic()

    def let_go(self) -> None:
        """Hold it no longer: the sweep may look at it, and nobody follows it."""
        if self.pods.held.get(self.plan.name) is self:
            del self.pods.held[self.plan.name]
            self.pods.watch.forget(self.plan.name)
            self.pods.metrics.environments.set(len(self.pods.held))

    async def remove(self) -> None:
        """Delete the pod, its Secret with it, and return when the API says it is gone; by force after a while."""
        try:
            if self.asked and not self.left and not await self.removed():
                self.pods.metrics.cleanup_failures.inc()
                log.error("an environment could not be removed; the sweep goes on with it", pod=self.name)
        finally:
            self.let_go()

    async def removed(self) -> bool:
        """Delete politely, then by force; whether the pod is gone."""
        settings = self.pods.settings
        began = time.monotonic()
        limit, retry_for = settings.cluster.delete_timeout, settings.cluster.retry_for
        polite = limit if self.container.begun else min(limit, settings.environment.grace + UNBEGUN)
        for grace, patience in ((None, polite), (0, limit)):
            try:
                uid = self.uid or await own_uid(self.client, self.path, self.plan.name, self.plan.nonce, retry_for)
                if not uid or not await delete_pod(self.client, self.path, self.plan.name, uid, grace, patience):
                    break
                if await self.gone(uid, patience):
                    break
            except ClusterError as error:
                log.warning("deleting a pod failed", pod=self.name, error=error.message)
        else:
            return False
        self.pods.metrics.phase_duration.labels("cleanup").observe(time.monotonic() - began)
        return True

    async def gone(self, uid: str, patience: float) -> bool:
        """Wait until the watch says that the pod is gone."""
        try:
            async with asyncio.timeout(patience):
                while self.watched.pod is not None and self.watched.pod["metadata"]["uid"] == uid:
                    await self.watched.change(self.watched.version)
        except TimeoutError:
            return False
        return True
