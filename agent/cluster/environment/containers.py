"""The states of the containers of a pod, as the log follower and the deletion of the pod need them.

A `PodContainers` lives as long as its environment.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from agent.cluster.in_pod.start_gate import NOT_READY
from agent.cluster.logs.source import LogState
from agent.cluster.pod.fields import container_status, helper_status, parse_timestamp
from agent.cluster.pod.manifest import ACTION
from agent.cluster.pod.session_annotation import claimed_at_of
from agent.cluster.warm.shape import is_idle

if TYPE_CHECKING:
    from datetime import datetime

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
            return LogState.UNUSED if has_given_up(helper_status(status)) else LogState.ABANDONED
        if helper != "running":
            return LogState.WAITING
        return LogState.ENDING if action == "terminated" else LogState.OPEN

    @property
    def running_since(self) -> datetime | None:
        """Return since when container `action` has run for the action. None before its start and after its end."""
        pod = self.pod_state.pod
        if pod is None or is_idle(pod):
            return None
        status = container_status(pod.get("status", {}), ACTION) or {}
        started = parse_timestamp(status.get("state", {}).get("running", {}).get("startedAt"))
        # The container of a warm pod has run before it got its action.
        return started and (claimed_at_of(pod) or started)

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


def has_given_up(helper: Object | None) -> bool:
    """Return whether container `helper` has ended before the commands, because a service was not ready."""
    exit_code: int | None = (helper or {}).get("state", {}).get("terminated", {}).get("exitCode")
    return exit_code == NOT_READY
