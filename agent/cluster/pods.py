"""Environments as pods: creates, follows, interrupts and removes them. The cluster's side of `execution.backend`.

`Pods` lives as long as the agent and holds what all environments share: the client, the watch, the settings. A
`PodEnvironment` lives as long as its session. An action costs three requests to the API (create, log, delete), one more
for files and one for secrets; everything else is read from the shared watch.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from agent.actions import Result
from agent.cluster import again, annotation, files, logbody, logs, manifest, setuplog, supervisor
from agent.cluster import exec as execs
from agent.cluster.archive import Limits as ArchiveLimits
from agent.cluster.container import ActionContainer
from agent.cluster.deletion import UNBEGUN, delete_pod
from agent.cluster.disruption import moment
from agent.cluster.markers import MarkerReader
from agent.cluster.names import SESSION, pod_name
from agent.cluster.status import classify
from agent.cluster.timeline import Timeline
from agent.cluster.waiting import History, Intent, Limits, container
from agent.errors import ActionFailed, ClusterError, Stage
from agent.observations import FINAL, Lost, SetupFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from agent.actions import Action, ArtifactRules, Cursor, FilePart, Outcome
    from agent.cluster.client import Client
    from agent.cluster.watch import PodWatch
    from agent.cluster.workbench import Workbench
    from agent.metrics import Metrics
    from agent.observations import Collected, LogGap, LogLost, LogPiece, Observation
    from agent.settings import Settings

Object = dict[str, Any]
log = structlog.get_logger(__name__)

# Shorter than the set-up waits for a Secret that is missing.
SECRET_PATIENCE = 20.0


class Pods:
    """Where environments come from, on Kubernetes."""

    def __init__(self, settings: Settings, client: Client, watch: PodWatch, metrics: Metrics, agent_id: str) -> None:
        self.settings = settings
        self.client = client
        self.watch = watch
        self.metrics = metrics
        self.agent_id = agent_id
        self.user_namespaces = False
        self.known = False  # whether it is settled what the cluster can do
        self.workbench: Workbench | None = None
        self.owner: Object | None = None
        self.held: dict[str, PodEnvironment] = {}
        self.claimed: set[str] = set()  # asked for, and not held yet: no remains
        self.left: dict[str, float] = {}  # given away and perhaps not seen to be claimed yet: nonce, and since when
        self.copies = asyncio.Semaphore(settings.artifacts.parallel)
        policy = settings.policy
        self.limits = Limits(
            pending=policy.pending_timeout,
            pull_grace=policy.pull_grace,
            registry_grace=policy.registry_grace,
            start=policy.pull_timeout,
            clone=policy.clone_timeout,
        )

    @property
    def reachable(self) -> bool:
        """Whether the cluster answers, and tells what becomes of pods."""
        return not self.trouble

    @property
    def trouble(self) -> str:
        """Why nothing can be made of an action now, for people; "" when it can."""
        if not self.client.reachable:
            return "the cluster does not answer"
        if self.watch.trouble:
            return f"the cluster does not tell of pods: {self.watch.trouble}"
        return "" if self.watch.synced.is_set() and self.known else "the cluster has not answered yet"

    def environment(self, action: Action) -> PodEnvironment:
        """Return the environment of this attempt, not yet made."""
        return PodEnvironment(self, self.plan(action, secrets.token_hex(16)))

    def adopted(self, pod: Object) -> PodEnvironment:
        """Return the environment of a pod that this agent has just claimed.

        Raises:
            ValueError: the pod does not tell what it is.
        """
        environment = PodEnvironment(self, self.plan(*annotation.read(pod)))
        environment.uid = pod["metadata"]["uid"]
        environment.asked = True
        environment.model = again.model(pod, self.settings)
        self.left.pop(environment.plan.nonce, None)
        self.watch.take("MODIFIED", pod)
        return environment

    def plan(self, action: Action, nonce: str) -> manifest.Plan:
        """Return what is known of the environment of an attempt."""
        settings = self.settings
        return manifest.Plan(
            action=action,
            name=pod_name(settings.agent.pool, action.key.action_id, action.key.attempt),
            namespace=settings.cluster.namespace,
            agent_id=self.agent_id,
            nonce=nonce,
            timeout=action.timeout or settings.policy.default_timeout,
            user_namespace=self.user_namespaces and settings.environment.profile == "baseline",
            owner=self.owner,
            held=self.workbench is not None and self.workbench.holds,
            filled=self.workbench is not None and self.workbench.tree is not None,
        )

    def superseded(self, pod: Object) -> PodEnvironment | None:
        """Return the environment that another agent has claimed, if the pod is one of this agent's."""
        held = self.held.get(pod["metadata"]["name"])
        if held is None or not held.uid or held.uid != pod["metadata"]["uid"] or held.left:
            return None
        return held if annotation.claim_of(pod) > held.plan.action.key.claim else None


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
        self.intent = Intent(
            nonce=plan.nonce,
            commands=len(plan.action.commands),
            secret=plan.name,
            wants_files=plan.wants_files,
        )

    def hold(self) -> None:
        """Begin to follow the pod, and keep the sweep off it; again when it is made again after `remove`."""
        self.watched = self.pods.watch.watch(self.plan.name)
        self.history = History()
        self.timeline: Timeline | None = None
        self.container = ActionContainer(self.watched)
        self.slow_start = setuplog.SlowStart(self.client, self.path)
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
        self.asked, self.uid, self.timeline = True, "", Timeline(time.monotonic())
        version = self.watched.version
        try:
            made = await self.client.patiently(
                "create pod",
                lambda: self.create_pod(body),
                seconds=settings.policy.pending_timeout,
                tell=waits,
            )
            self.uid = made["metadata"]["uid"]
            if self.watched.version == version:  # what the watch has told already is newer, and may be the end of it
                self.pods.watch.take("ADDED", made)
            if self.plan.action.secrets:
                await self.create_secret(manifest.secret(self.plan, settings, self.uid), waits)
        except ClusterError as error:
            text = f"the environment cannot be created: {error.message}"
            raise ActionFailed(Stage.SETUP, error.reason, text, log=setuplog.refused(error)) from error

    async def take_over(self, values: Mapping[str, str]) -> None:
        """Learn the secrets of an adopted session, and make its Secret if the pod still waits for it."""
        action = replace(self.plan.action, secrets=dict(values))
        self.plan = replace(self.plan, action=action)
        if values and self.container.state is logs.ContainerState.WAITING:
            try:
                await self.create_secret(manifest.secret(self.plan, self.pods.settings, self.uid))
            except ClusterError as error:
                raise ActionFailed(Stage.SETUP, error.reason, error.message, log=setuplog.refused(error)) from error

    @property
    def repeatable(self) -> bool:
        """Whether `create` can make it again."""
        return self.model is not None or bool(self.plan.action.image)

    @property
    def running_for(self) -> float:
        """How many seconds the container of the commands has been running, by the cluster's clock; 0 before."""
        status = container((self.watched.pod or {}).get("status", {}), manifest.ACTION) or {}
        started = moment(status.get("state", {}).get("running", {}).get("startedAt"))
        return max(0.0, (self.client.now() - started).total_seconds()) if started else 0.0

    async def create_pod(self, body: Object) -> Object:
        """Create the pod; one that exists already is our own, from a try whose answer was lost."""
        try:
            return await self.client.request("create", "pods", self.path, body=body)
        except ClusterError as error:
            if error.status != 409 or error.retryable:
                raise
            found = await self.standing()
            # Admission may have added annotations of its own; the session's holds our nonce.
            if found["metadata"].get("annotations", {}).get(SESSION) != body["metadata"]["annotations"][SESSION]:
                raise
            return found

    async def standing(self) -> Object:
        """Read the pod that stands in the way; one that is gone meanwhile does not any more."""
        try:
            return await self.client.request("get", "pods", f"{self.path}/{self.plan.name}")
        except ClusterError as error:
            if error.status != 404:
                raise
            raise ClusterError(error.message, status=404, retryable=True) from error

    async def create_secret(self, body: Object, tell: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Create the Secret; one that exists already goes with an earlier pod of ours, so it is made anew."""
        path = f"/api/v1/namespaces/{self.plan.namespace}/secrets"

        async def attempt() -> Object:
            try:
                return await self.client.request("create", "secrets", path, body=body)
            except ClusterError as error:
                if error.status != 409:
                    raise
                await self.delete_secret(f"{path}/{self.plan.name}")
                raise ClusterError(error.message, status=409, retryable=True) from error

        await self.client.patiently("create secret", attempt, seconds=SECRET_PATIENCE, tell=tell)

    async def delete_secret(self, path: str) -> None:
        """Delete a Secret that may be gone already."""
        try:
            await self.client.request("delete", "secrets", path)
        except ClusterError as error:
            if error.status != 404:
                raise

    # ---- what happens

    async def observations(self) -> AsyncGenerator[Observation, None]:
        """Yield what is seen, on every change; ends after the first final observation."""
        previous: Observation | None = None
        while True:
            version = self.watched.version
            pod, now = self.watched.pod, time.monotonic()
            sight = classify(
                pod, self.intent, self.pods.limits, self.history, now, self.client.now(), self.watched.last
            )
            if self.timeline:
                self.timeline.count(self.pods.metrics, pod, sight.observation, now)
            seen = await self.slow_start.told(pod, sight.observation, now)
            if seen != previous:
                previous = seen
                yield await self.explained(previous)
                if isinstance(previous, FINAL):
                    return
            rechecks = (sight.recheck, self.slow_start.recheck(now))
            await self.watched.change(version, min((each for each in rechecks if each is not None), default=None))

    async def explained(self, seen: Observation) -> Observation:
        """Add the text for a person to an observation that nobody would understand without it."""
        if isinstance(seen, (SetupFailed, Lost)):
            return await setuplog.explained(self.client, self.path, self.watched.pod or self.watched.last, seen)
        return seen

    def markers(self) -> MarkerReader:
        """Return a fresh reader for the markers of this environment's log."""
        return MarkerReader(self.plan.nonce)

    async def log(self, cursor: Cursor) -> AsyncGenerator[LogPiece | LogGap | LogLost, None]:
        """Yield the log of the commands from the cursor to its end."""
        target = logbody.Target(self.plan.namespace, self.plan.name, manifest.ACTION)
        self.container.log_ended = False
        settings = self.pods.settings.logs
        patience = logs.Patience(probe=settings.probe_after)
        items = logs.follow(self.client, target, cursor, self.container, patience, settings.node_limit)
        async with aclosing(items):
            async for item in items:
                yield item

    def log_ended(self) -> None:
        """Take note that the supervisor's last marker was seen."""
        self.container.log_ended = True

    async def interrupt(self, grace: float) -> bool:
        """Send TERM to the commands and KILL after `grace` seconds; False when the pod cannot be reached."""
        target = execs.Target(self.plan.namespace, self.plan.name, manifest.ACTION)
        try:
            await execs.run(self.client, target, supervisor.interrupt(grace), seconds=grace + 10)
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
            async with aclosing(files.collect(open_exec, rules, limits, workspace=workspace)) as items:
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
        limit = settings.cluster.delete_timeout
        polite = limit if self.container.begun else min(limit, settings.environment.grace + UNBEGUN)
        for grace, patience in ((None, polite), (0, limit)):
            try:
                uid = self.uid or await self.own_uid()
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

    async def own_uid(self) -> str:
        """Look for a pod whose creation was asked for but never confirmed; "" when there is none of ours."""
        try:
            found = await self.client.patiently(
                "get pod",
                lambda: self.client.request("get", "pods", f"{self.path}/{self.plan.name}"),
                seconds=self.pods.settings.cluster.retry_for,
            )
        except ClusterError as error:
            if error.status == 404:
                return ""
            raise
        nonce_is_ours = self.plan.nonce in str(found["metadata"].get("annotations", {}))
        return str(found["metadata"]["uid"]) if nonce_is_ours else ""

    async def gone(self, uid: str, patience: float) -> bool:
        """Wait until the watch says that the pod is gone."""
        try:
            async with asyncio.timeout(patience):
                while self.watched.pod is not None and self.watched.pod["metadata"]["uid"] == uid:
                    await self.watched.change(self.watched.version)
        except TimeoutError:
            return False
        return True
