"""Bring the end of one pod forward, in two steps. Both only save time.

A kubelet needs up to a second until it sees that the commands ended, so the agent nudges it when the log has ended.
After the request to delete a pod, the kubelet needs two more looks: before it stops the containers, and before it
reports that their remains are gone. The agent nudges it to the first look. It need not wait for the second one, because
a pod whose phase is final has no process left, and a second request removes it at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from agent.cluster.ending.nudger import Nudger
from agent.cluster.ending.plan import action_ended
from agent.cluster.pod.status import is_final
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.cluster.ending.nudger import NudgeSwitch, WatchedPod
    from agent.cluster.pod.manifest import Plan

log = structlog.get_logger(__name__)

# Seconds to wait for the final phase. The deletion then continues without nudges.
FINAL_PHASE_SECONDS = 3.0


class PodEnding:
    """The end of one environment's pod. Owned by the environment. `watched` returns the newest state of the pod."""

    def __init__(self, client: Client, switch: NudgeSwitch, plan: Plan, watched: Callable[[], WatchedPod]) -> None:
        self.client = client
        self.watched = watched
        self.path = f"/api/v1/namespaces/{plan.namespace}/pods/{plan.name}"
        self.nudger = Nudger(switch, self.path, watched)
        self.task: asyncio.Task[None] | None = None

    def begin(self, pod: Object) -> None:
        """Take over a pod that this agent has created or claimed, as the API server returned it."""
        self.cancel()
        self.nudger.begin(pod)

    def log_ended(self) -> None:
        """Make the kubelet see the end of the commands, in the background."""
        self.cancel()
        if self.nudger.may_start():
            self.task = asyncio.create_task(self.nudger.run(action_ended), name=f"nudges for {self.path}")

    async def hasten_deletion(self) -> None:
        """Make the kubelet stop the containers of a pod whose deletion was requested, and remove the pod.

        Do nothing if the commands may still run, because their grace period must pass.
        """
        pod = self.watched().pod
        if pod is None or not action_ended(pod) or not self.nudger.may_start():
            return
        uid = pod["metadata"]["uid"]
        try:
            async with asyncio.timeout(FINAL_PHASE_SECONDS):
                await self.nudger.run(is_final, deleting=True)
                await self.nudger.wait_until(is_final, FINAL_PHASE_SECONDS)
        except TimeoutError:
            return
        pod = self.watched().pod
        if pod is not None and pod["metadata"]["uid"] == uid and is_final(pod):
            await self.remove_final(uid)

    async def remove_final(self, uid: str) -> None:
        """Remove the object of a pod whose containers have ended. The kubelet does this itself after its next look."""
        body: Object = {"preconditions": {"uid": uid}, "gracePeriodSeconds": 0}
        try:
            await self.client.request("delete", "pods", self.path, body=body)
        except ClusterError as error:
            log.debug("a pod whose phase is final was not removed", error=error.message)

    def cancel(self) -> None:
        """End the nudges that run in the background."""
        if self.task is not None:
            self.task.cancel()
            self.task = None
