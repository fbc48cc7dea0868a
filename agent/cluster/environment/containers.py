"""The states of the containers of a pod, as the log follower and the deletion of the pod need them.

A `PodContainers` lives as long as its environment.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.cluster.logs.source import LogState
from agent.cluster.pod.fields import container_status, helper_status
from agent.cluster.pod.manifest import ACTION

if TYPE_CHECKING:
    from agent.cluster.environment.watch import PodState
    from agent.domain.json import Object


class PodContainers:
    """The containers of one environment, as the watch shows them. Owned by that environment."""

    def __init__(self, pod_state: PodState) -> None:
        self.pod_state = pod_state

    @property
    def state(self) -> LogState:
        """Return the state of the pod's log, which follows from the states of the containers."""
        if self.pod_state.pod is None:
            return LogState.GONE
        status = self.pod_state.pod.get("status", {})
        helper, action = state_name(helper_status(status)), state_name(container_status(status, ACTION))
        if helper == "terminated":
            return LogState.ABANDONED
        if helper != "running":
            return LogState.WAITING
        return LogState.ENDING if action == "terminated" else LogState.OPEN

    @property
    def may_have_run(self) -> bool:
        """Return whether it is possible that a command has started. True also if the pod is gone."""
        if self.pod_state.pod is None:
            return True
        return state_name(container_status(self.pod_state.pod.get("status", {}), ACTION)) != "waiting"

    async def wait_while(self, state: LogState) -> None:
        """Wait until the log is in another state."""
        while self.state is state:
            await self.pod_state.wait_for_change(self.pod_state.version)

    async def wait_until_gone(self, uid: str, seconds: float) -> bool:
        """Wait until the watch reports the end of the pod. Return False if `seconds` pass before."""
        try:
            async with asyncio.timeout(seconds):
                while self.pod_state.pod is not None and self.pod_state.pod["metadata"]["uid"] == uid:
                    await self.pod_state.wait_for_change(self.pod_state.version)
        except TimeoutError:
            return False
        return True


def state_name(status: Object | None) -> str:
    """Return "waiting", "running" or "terminated"; "waiting" if the kubelet has not reported the container."""
    return next(iter((status or {}).get("state", {})), "waiting")
