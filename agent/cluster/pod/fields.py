"""Find the parts of a pod's status by container name, and read timestamps. The functions have no side effects."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from agent.cluster.pod.manifest import FORMER_HELPER, HELPER, REPOSITORY

if TYPE_CHECKING:
    from agent.domain.json import Object


def container_status(status: Object, name: str) -> Object | None:
    """Return the status of a container that is not an init container; None if the kubelet has not reported it."""
    return next((each for each in status.get("containerStatuses", ()) if each["name"] == name), None)


def helper_status(status: Object) -> Object | None:
    """Return the status of the helper.

    None if the kubelet has not reported it, or if the pod of an older release has no helper.
    """
    return container_status(status, HELPER) or container_status(status, FORMER_HELPER)


def is_running(status: Object | None) -> bool:
    return "running" in (status or {}).get("state", {})


def terminated_state(status: Object | None) -> Object | None:
    """Return `state.terminated` of a container status; None if the container has not terminated."""
    found: Object | None = (status or {}).get("state", {}).get("terminated")
    return found


def setup_statuses(status: Object) -> list[Object]:
    """Return the statuses of the containers that set-up depends on: init containers, then the helper."""
    helper = helper_status(status)
    return [*status.get("initContainerStatuses", ()), *([helper] if helper else [])]


def clone_notice(status: Object) -> str:
    """Return what the clone program reports about a clone that succeeded, "" for nothing."""
    clones = (each for each in status.get("initContainerStatuses", ()) if each["name"] == REPOSITORY)
    terminated = terminated_state(next(clones, None)) or {}
    notice: str = terminated.get("message", "") if terminated.get("exitCode") == 0 else ""
    return notice


def parse_timestamp(text: str | None) -> datetime | None:
    """Parse an RFC 3339 timestamp of the API; None for an absent field."""
    return datetime.fromisoformat(text) if text else None
