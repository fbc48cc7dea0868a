"""The container of the commands, as the reader of its log sees it. Lives as long as its environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.logs.follower import ContainerState
from agent.cluster.pod.fields import container_status
from agent.cluster.pod.manifest import ACTION

if TYPE_CHECKING:
    from agent.cluster.environment.watch import Watched


class ActionContainer:
    """The container of the commands, as the reader of its log sees it."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched
        self.log_ended = False

    @property
    def state(self) -> ContainerState:
        """What is known now."""
        if self.watched.pod is None:
            return ContainerState.GONE
        state = (container_status(self.watched.pod["status"], ACTION) or {}).get("state", {})
        if "terminated" in state:
            return ContainerState.TERMINATED
        return ContainerState.RUNNING if "running" in state else ContainerState.WAITING

    @property
    def begun(self) -> bool:
        """Whether commands may have begun."""
        return self.state is not ContainerState.WAITING

    async def left(self, state: ContainerState) -> None:
        """Wait until the state is another one."""
        while self.state is state:
            await self.watched.change(self.watched.version)
