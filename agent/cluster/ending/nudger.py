"""Send the nudges of a pod until its status shows what the agent waits for. Nudges only save time.

One `NudgeSwitch` lives as long as the agent, and one `Nudger` as long as its environment. No verdict depends on a
nudge, and no error leaves this module. If the API server refuses a nudge, the agent sends none for a while.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Protocol

import structlog

from agent.cluster.api.client import STRATEGIC_PATCH
from agent.cluster.ending.plan import NudgePlan, helper_millicores, is_busy, is_refusal, resize
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.cluster.api.client import Client

log = structlog.get_logger(__name__)

# Seconds without nudges after a refusal.
OFF_SECONDS = 600.0
# Seconds until a nudge is given up. A later answer would save nothing.
REQUEST_SECONDS = 2.0
CONFLICT = 409


class WatchedPod(Protocol):
    """The newest state of one pod. Implemented by `watch.PodState`."""

    @property
    def pod(self) -> Object | None:
        """The pod, None if it is gone."""

    @property
    def version(self) -> int:
        """The number of updates so far."""

    async def wait_for_change(self, version: int, timeout: float | None = None) -> None:
        """Wait until `version` changes, at most `timeout` seconds."""


class NudgeSwitch:
    """Sends nudges while the API server accepts them. Owned by the backend, lives as long as the agent.

    `enabled` returns whether the settings and the version of the cluster allow nudges. `pods` returns the pods of all
    sessions of this agent.
    """

    def __init__(
        self,
        client: Client,
        enabled: Callable[[], bool],
        pods: Callable[[], Iterable[Object]],
        off_seconds: float = OFF_SECONDS,
    ) -> None:
        self.client = client
        self.enabled = enabled
        self.pods = pods
        self.off_seconds = off_seconds
        self.off_until = -math.inf

    @property
    def on(self) -> bool:
        """Return whether the agent sends nudges now."""
        return self.enabled() and now() >= self.off_until

    def is_busy(self, node: str) -> bool:
        """Return whether the node is too busy for nudges, and count this."""
        if not is_busy(self.pods(), node):
            return False
        self.count("skipped")
        return True

    async def send(self, path: str, uid: str, millicores: int) -> bool:
        """Send one nudge. `path` is the path of the pod. Return whether the next nudge makes sense."""
        if not self.on:
            return False
        if self.client.bucket.waiters:
            # Requests wait for the rate limit. A nudge must not make them wait longer.
            self.count("skipped")
            return True
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self.client.request(
                    "patch", "pods/resize", f"{path}/resize", body=resize(uid, millicores), patch=STRATEGIC_PATCH
                )
        except TimeoutError:
            self.count("failed")
            return False
        except ClusterError as error:
            if is_refusal(error.status, error.message, path.rpartition("/")[2]):
                self.count("refused")
                self.switch_off(error)
                return False
            self.count("failed")
            return error.status == CONFLICT
        self.count("accepted")
        return True

    def count(self, result: str) -> None:
        self.client.metrics.nudges.labels(result).inc()

    def switch_off(self, error: ClusterError) -> None:
        """Send no nudges for a while, and log the reason once."""
        if self.on:
            log.warning(
                "the API server refuses pods/resize; until the next try, the end of an action is seen up to 1 s later, "
                "and its pod is gone up to 2 s later",
                error=error.message,
                retry_after=self.off_seconds,
            )
        self.off_until = now() + self.off_seconds


class Nudger:
    """Nudges one pod. Owned by the environment, lives as long as the environment.

    `path` is the path of the pod. `watched` returns the pod's newest state.
    """

    def __init__(self, switch: NudgeSwitch, path: str, watched: Callable[[], WatchedPod]) -> None:
        self.switch = switch
        self.path = path
        self.watched = watched
        self.uid = ""
        self.plan = NudgePlan(0)

    def begin(self, pod: Object) -> None:
        """Take over a pod that this agent has created or claimed, as the API server returned it."""
        self.uid, self.plan = pod["metadata"]["uid"], NudgePlan(helper_millicores(pod))

    def may_start(self) -> bool:
        """Return whether a series of nudges may start now. A metric counts the series that a busy node prevents."""
        pod = self.watched().pod or {}
        allowed = self.switch.on and self.plan.possible
        return allowed and not self.switch.is_busy(pod.get("spec", {}).get("nodeName", ""))

    async def run(self, done: Callable[[Object], bool], *, deleting: bool = False) -> None:
        """Send a series of nudges until `done` is true of the pod, or the pod is gone, or no nudge is left."""
        for pause in self.plan.pauses(deleting=deleting):
            if await self.wait_until(done, pause) or not self.switch.on:
                return
            if not await self.switch.send(self.path, self.uid, self.plan.take()):
                return

    async def wait_until(self, done: Callable[[Object], bool], seconds: float) -> bool:
        """Wait at most `seconds`. Return whether `done` is true of the pod, or the pod is gone."""
        watched = self.watched()
        try:
            async with asyncio.timeout(seconds):
                while (pod := watched.pod) is not None and pod["metadata"]["uid"] == self.uid and not done(pod):
                    await watched.wait_for_change(watched.version)
        except TimeoutError:
            return False
        return True


def now() -> float:
    return asyncio.get_running_loop().time()
