"""Find the parts of a pod's status by container name. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod.manifest import FILES

if TYPE_CHECKING:
    from agent.domain.json import Object


def container_status(status: Object, name: str) -> Object | None:
    """Return the status of a container by its name."""
    return next((each for each in status.get("containerStatuses", ()) if each["name"] == name), None)


def is_running(status: Object | None) -> bool:
    """Whether a container runs, as far as the API knows."""
    return "running" in (status or {}).get("state", {})


def setup_statuses(status: Object) -> list[Object]:
    """Return the statuses that set-up depends on: init containers, then `files`."""
    files = container_status(status, FILES)
    return [*status.get("initContainerStatuses", ()), *([files] if files else [])]
