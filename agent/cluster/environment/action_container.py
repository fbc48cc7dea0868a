"""The state of container `action`, for the log follower. The object lives as long as its environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.logs.follower import ContainerState
from agent.cluster.pod.fields import container_status
from agent.cluster.pod.manifest import ACTION

if TYPE_CHECKING:
    from agent.cluster.environment.watch import PodState


class ActionContainer:
    """Container `action` of one environment, as the watch shows it. Owned by that environment.

    `log_ended` is True while the log that was read ends with the marker by which the supervisor ends its log.
    """

    def __init__(self, pod_state: PodState) -> None:
        self.pod_state = pod_state
        self.log_ended = False

    @property
    def state(self) -> ContainerState:
        if self.pod_state.pod is None:
            return ContainerState.GONE
        state = (container_status(self.pod_state.pod["status"], ACTION) or {}).get("state", {})
        if "terminated" in state:
            return ContainerState.TERMINATED
        return ContainerState.RUNNING if "running" in state else ContainerState.WAITING

    @property
    def may_have_run(self) -> bool:
        """Return whether a command may have started. True also if the pod is gone."""
        return self.state is not ContainerState.WAITING

    async def wait_while(self, state: ContainerState) -> None:
        """Wait until the container is in another state than `state`."""
        while self.state is state:
            await self.pod_state.wait_for_change(self.pod_state.version)
