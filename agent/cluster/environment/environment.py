"""One environment, as a pod with its Secret: create, follow, interrupt and delete it, and read its log and its files.

This module implements `execution.ports.Environment`. A `PodEnvironment` lives as long as its session. An action costs
three requests to the API server (create, log, delete). Copying files and creating a Secret take one more request each.
Nudges (package `ending`) add a few. Everything else comes from the shared watch.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.cluster.api import exec as execs
from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.ending.pod_ending import PodEnding
from agent.cluster.environment import creation, failure_report
from agent.cluster.environment.containers import PodContainers
from agent.cluster.environment.services import PodServices
from agent.cluster.environment.transfers import FileTransfers
from agent.cluster.environment.warm_start import WarmStart
from agent.cluster.logs import follower
from agent.cluster.logs.source import Timings
from agent.cluster.pod import manifest, recreate
from agent.cluster.pod.action_order import restricted_user
from agent.cluster.pod.fields import clone_notice
from agent.cluster.pod.setup_status import Expectations, FirstSeen
from agent.cluster.pod.status import classify
from agent.cluster.supervisor import command
from agent.cluster.supervisor.markers import MarkerReader
from agent.domain.errors import ActionFailed, ClusterError, Reason, Stage
from agent.domain.json import Object
from agent.domain.observations import FINAL, LogEnd, LogLost, Lost, SetupFailed
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from agent.cluster.environment.context import Context
    from agent.cluster.environment.registry import EnvironmentRegistry
    from agent.cluster.pod.setup_timing import SetupTiming
    from agent.cluster.warm.pool import WarmPod
    from agent.domain.actions import Action
    from agent.domain.log_cursor import Cursor
    from agent.domain.observations import LogItem, Observation
    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Resume

log = structlog.get_logger(__name__)

# Seconds until the agent looks again whether a pod has a node, after a warm pod made room for it.
CROWDED_RECHECK = 1.0


class PodEnvironment(FileTransfers):
    """One pod with its Secret. Owned by one session and lives as long as that session.

    `adopted` is a pod that this agent has just claimed. If `adopted` is None, the environment has no pod at first.
    `reserved` is a warm pod for the action.
    """

    def __init__(
        self,
        context: Context,
        registry: EnvironmentRegistry,
        plan: manifest.Plan,
        *,
        adopted: Object | None = None,
        reserved: WarmPod | None = None,
    ) -> None:
        self.context = context
        self.registry = registry
        self.plan = plan
        self.client = context.client
        self.metrics = context.client.metrics
        self.path = f"/api/v1/namespaces/{plan.namespace}/pods"
        self.adopted = adopted
        self.warm_start = WarmStart(context, plan, reserved)
        if reserved:
            self.plan = replace(plan, name=reserved.name)
        self.uid = adopted["metadata"]["uid"] if adopted else ""
        self.uploaded_uid = ""  # UID of the pod that has received the working tree
        self.creation_requested = adopted is not None
        self.disowned = False
        self.refusal = ""  # why the agent ends an adopted session and does not continue it, else ""
        # Manifest to re-create an adopted pod. None if this agent created the pod, or if the commands have begun.
        self.recreation_manifest = recreate.recreation_manifest(adopted, context.settings) if adopted else None
        self.own()
        self.services = PodServices(self)
        if adopted:
            self.ending.begin(adopted)

    def own(self) -> None:
        """Watch the pod and register the environment. `create` calls this method again if `remove` has run before."""
        plan = self.plan
        self.expectations = Expectations(
            nonce=plan.nonce,
            commands=len(plan.action.commands),
            secret=plan.secret_name,
            wants_files=plan.wants_files,
            services=plan.action.services,
            user=restricted_user(self.context.settings),
        )
        self.ending = PodEnding(self.client, self.context.nudges, plan, lambda: self.pod_state)
        self.pod_state = self.context.watch.watch(self.plan.name)
        self.first_seen = FirstSeen()
        self.setup_timing: SetupTiming | None = None
        self.containers = PodContainers(self.pod_state)
        self.startup_events = failure_report.StartupEvents(
            self.client, self.path, self.context.timings, self.context.limits.pull_grace
        )
        self.registry.own(self)

    @property
    def name(self) -> str:
        """Return "namespace/pod", for people."""
        return f"{self.plan.namespace}/{self.plan.name}"

    # ---- the set-up of the environment

    async def create(self, notify: Callable[[str], Awaitable[None]] | None = None) -> None:
        """Begin the action in a warm pod, or create the pod and its Secret. `notify` gets each reason to wait, as text.

        Raises:
            ActionFailed: the cluster refused the pod or the Secret and a retry cannot help, or the cluster did not
            answer before the pending timeout.
        """
        if not self.registry.owns(self.plan.name):
            self.own()
        self.creation_requested = True
        self.services.reset()
        if not await self.warm_start.run(self):
            await creation.create(self, notify)

    def pod_began(self, pod: Object) -> None:
        """Take over a pod that was created or claimed, as the API server returned it."""
        self.uid = pod["metadata"]["uid"]
        self.ending.begin(pod)
        self.context.watch.apply_event("MODIFIED", pod)

    def use_pod(self, name: str, uid: str) -> None:
        """Continue with another pod, which has this name and UID. The UID is "" if the pod does not exist yet."""
        if name != self.plan.name:
            self.release()
            self.plan = replace(self.plan, name=name)
            self.own()
        self.uid = uid

    async def take_over(self, resume: Resume) -> bool:
        """Store the secret values of an adopted session. Create its Secret if the pod may still wait for the Secret.

        Return False if the commands have not begun, and cannot begin in this pod any more.

        Raises:
            ActionFailed: the Secret cannot be created, the session is given up, or the pod does not answer.
        """
        if self.refusal:
            raise ActionFailed(Stage.COMMANDS, Reason.INTERNAL, self.refusal)
        values = resume.secrets
        # The annotation of the pod does not name the caches, which are saved after the commands.
        caches = resume.action.caches if resume.action is not None else ()
        action = replace(self.plan.action, secrets=dict(values), caches=caches)
        self.plan = replace(self.plan, action=action)
        self.expectations = replace(self.expectations, wants_files=self.plan.wants_files)
        if values and not self.containers.may_have_run:
            try:
                await creation.create_secret(self)
            except ClusterError as error:
                text = failure_report.refusal_text(error)
                raise ActionFailed(Stage.SETUP, error.reason, error.message, log=text) from error
        return self.adopted is None or await self.warm_start.has_begun(self, self.adopted, resume)

    async def begin_again(self, action: Action) -> None:
        """Prepare `create` after `take_over` returned False. `action` is the whole action.

        Raises:
            ActionFailed: the adopted pod cannot be deleted, or is not this agent's any more.
        """
        if self.adopted is not None:
            await self.warm_start.discard(self, self.adopted)
        self.plan = replace(self.plan, action=action)
        self.use_pod(self.warm_start.own_name, "")

    @property
    def recreatable(self) -> bool:
        """Return whether `create` can re-create the environment after `remove`."""
        return self.recreation_manifest is not None or bool(self.plan.action.image)

    @property
    def running_for(self) -> float:
        """Return how many seconds container `action` has run for the action. 0 before its start."""
        started = self.containers.running_since
        return max(0.0, (self.client.now() - started).total_seconds()) if started else 0.0

    @property
    def setup_notice(self) -> str:
        return clone_notice((self.pod_state.pod or {}).get("status", {}))

    # ---- the status of the environment

    async def observations(self) -> AsyncGenerator[Observation, None]:
        """Yield each change of the environment's status. Ends after the first final observation."""
        previous: Observation | None = None
        while True:
            version = self.pod_state.version
            pod, now = self.pod_state.pod, time.monotonic()
            wall, last = self.client.now(), self.pod_state.last
            judgement = classify(pod, self.expectations, self.context.limits, self.first_seen, now, wall, last)
            observation = await self.startup_events.describe_wait(pod, judgement.observation, now)
            observation = self.services.with_states(pod, observation, now)
            if self.setup_timing:
                self.setup_timing.record(self.metrics, pod, observation, now)
            if observation != previous:
                previous = observation
                yield await self.with_report(observation)
                if isinstance(observation, FINAL):
                    return
            crowded = await self.context.warm.relieve(pod)
            rechecks = (judgement.recheck, self.startup_events.recheck(now), CROWDED_RECHECK if crowded else None)
            timeout = min((each for each in rechecks if each is not None), default=None)
            await self.pod_state.wait_for_change(version, timeout)

    async def with_report(self, observation: Observation) -> Observation:
        """Return the observation, with a report for the person who reads the set-up log if it is a failure."""
        if not isinstance(observation, (SetupFailed, Lost)):
            return observation
        pod, seconds = self.pod_state.pod or self.pod_state.last, self.context.timings.events_retry_seconds
        return await failure_report.add_report(self.client, self.path, pod, observation, seconds)

    def markers(self, start: Cursor) -> MarkerReader:
        """Return a new reader for the supervisor's markers in this environment's log from a cursor on."""
        return MarkerReader(self.plan.nonce, len(self.plan.action.commands), start, len(self.plan.action.services))

    async def log(self, cursor: Cursor) -> AsyncGenerator[LogItem, None]:
        """Yield the log of the commands from the cursor to the end of the log."""
        if cursor.older or not self.plan.log_key:
            yield LogLost("an agent of an older release has started the action, and this release cannot read its log")
            return
        timings = Timings(probe=self.context.settings.logs.probe_after)
        items = follower.follow(
            self.client, self.helper_container, cursor.offset, self.containers, self.plan.log_key, timings
        )
        async with aclosing(items):
            async for item in items:
                if isinstance(item, LogEnd):
                    self.ending.log_ended()
                yield item

    async def interrupt(self, grace: float) -> bool:
        """Send TERM to the commands, and KILL after `grace` seconds. Return False if the pod cannot be reached."""
        target = ContainerRef(self.plan.namespace, self.plan.name, manifest.ACTION)
        self.expectations = replace(self.expectations, interrupted=True)
        try:
            await execs.run(self.client, target, command.interrupt(grace), seconds=grace + 10)
        except ClusterError as error:
            # The container may end before the exec can report its exit code. The watch then shows the end.
            log.info("the exec that stops the commands did not end by itself", error=error.message)
            return error.status == 0 and not isinstance(error, execs.ExecDeadline)
        return True

    # ---- debugging by the person at the terminal of `run`

    @property
    def interactive(self) -> bool:
        """Return whether a person at a terminal uses the environment."""
        return self.context.debug is not None

    async def upload_workspace(self, notify: Callable[[str], Awaitable[None]]) -> None:
        """Upload the working tree of the person who started `run` into the workspace, once per pod."""
        # After a state loss of the scheduler the session calls this method again, perhaps while the commands run. A
        # second upload would overwrite the files of the commands.
        if self.context.debug is not None and self.uploaded_uid != self.uid:
            await self.services.upload_tree(self.context.debug, notify)
            self.uploaded_uid = self.uid

    async def hold_for_debugging(self, outcome: Outcome) -> str:
        """Open a shell after a failure, or keep the pod, if the options of `run` ask for it.

        Return a description of the pod if it explains the failure, else "". Returns "" also if a command failed,
        because the output of the command explains that failure.
        """
        debug, pod, report = self.context.debug, self.pod_state.pod, ""
        if debug is None or pod is None or outcome.result is Result.CANCELLED:
            return ""
        if outcome.result is Result.FAILED and outcome.stage is not Stage.SETUP:
            if outcome.reason is not Reason.COMMAND_FAILED:
                seconds = self.context.timings.events_retry_seconds
                report = await failure_report.describe_failed_pod(self.client, self.path, pod, seconds)
            await debug.open_shell(self.context, self.plan, pod, outcome, self.helper_container)
        if debug.keep:
            self.disown()
        return report

    # ---- the end of the environment

    def disown(self) -> None:
        """Give up ownership: another agent has adopted the pod or will adopt it. `remove` then does nothing."""
        self.disowned = True
        self.ending.cancel()
        self.registry.hand_over(self.plan.nonce)

    def release(self) -> None:
        """Remove the pod from this process's watch and registry.

        The cluster is not touched. `remove` calls this last.
        """
        self.ending.cancel()
        self.warm_start.give_back()
        if self.registry.release(self) and not self.context.warm.owns(self.plan.name):
            self.context.watch.forget(self.plan.name)

    async def remove(self) -> None:
        """Delete the pod, and with it the Secret, and return when the pod is gone.

        Force the deletion if the pod is not gone in time. A metric counts each pod that cannot be deleted. The sweep,
        the periodic search for orphans, deletes this pod later.
        """
        try:
            if self.creation_requested and not self.disowned and not await creation.delete(self):
                self.metrics.cleanup_failures.inc()
                log.error("an environment could not be deleted; the sweep will retry", pod=self.name)
        finally:
            self.release()
