"""Bring the end of one pod forward, in two steps. Both only save time.

A kubelet needs about a second until it sees that the commands ended. When the log has ended, the agent therefore nudges
the kubelet. The deletion of a pod with a running container takes two seconds more, while a pod whose phase is final
vanishes at once. So container `helper` ends first, the agent nudges until the phase is final, and then it deletes the
pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from agent.cluster.api import exec as execs
from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.ending.nudger import Nudger
from agent.cluster.in_pod.log_keeper import LEAVE_BYTES
from agent.cluster.pod.fields import container_status, terminated_state
from agent.cluster.pod.manifest import ACTION, HELPER
from agent.cluster.pod.status import is_final
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.cluster.ending.nudger import NudgeSwitch, WatchedPod
    from agent.cluster.pod.manifest import Plan

log = structlog.get_logger(__name__)

# The command that ends container `helper`. Its PID 1 exits at once on TERM when the log has ended.
END_HELPER = ("/bin/sh", "-c", "kill -TERM 1")
# Seconds until the exec of this command is given up.
END_HELPER_SECONDS = 2.0


class PodEnding:
    """The end of one environment's pod. Owned by the environment.

    `watched` returns the newest state of the pod.
    """

    def __init__(self, client: Client, switch: NudgeSwitch, plan: Plan, watched: Callable[[], WatchedPod]) -> None:
        self.client = client
        self.plan = plan
        self.watched = watched
        path = f"/api/v1/namespaces/{plan.namespace}/pods/{plan.name}"
        self.nudger = Nudger(switch, path, watched)
        # Whether container `helper` exits by itself now.
        self.helper_leaves = False

    def begin(self, pod: Object) -> None:
        """Take over a pod that this agent has created or claimed, as the API server returned it."""
        self.nudger.begin(pod)

    def log_ended(self, size: int) -> None:
        """Make the kubelet look at the pod, because the log has ended after `size` bytes."""
        self.helper_leaves = self.plan.helper_may_leave and size <= LEAVE_BYTES
        self.nudger.start(is_final if self.helper_leaves else action_ended)

    async def end_helper(self) -> None:
        """End container `helper` and wait a moment for the final phase, so that the deletion takes no time.

        Do nothing if the commands may still run, or if no nudge can shorten the wait.
        """
        if not self.is_worthwhile():
            await self.nudger.stop()
            return
        if not self.helper_leaves:
            await self.stop_helper()
            self.nudger.start(is_final)
        await self.nudger.finish()

    def is_worthwhile(self) -> bool:
        """Return whether the helper can end before the pod, and the agent can see this soon."""
        pod = self.watched().pod
        if pod is None or pod["metadata"].get("deletionTimestamp") or is_final(pod) or not action_ended(pod):
            return False
        return self.nudger.running or self.nudger.possible

    async def stop_helper(self) -> None:
        """Send TERM to PID 1 of container `helper`. A failure is only logged."""
        target = ContainerRef(self.plan.namespace, self.plan.name, HELPER)
        try:
            await execs.run(self.client, target, END_HELPER, seconds=END_HELPER_SECONDS)
        except ClusterError as error:
            # The container may end before the exec can report its exit code.
            log.debug("the exec that ends container helper did not end by itself", error=error.message)

    def cancel(self) -> None:
        """Send no more nudges."""
        self.nudger.cancel()


def action_ended(pod: Object) -> bool:
    """Return whether the status of the pod shows the end of the commands."""
    return terminated_state(container_status(pod.get("status", {}), ACTION)) is not None
