"""What the agent finds out about its cluster once, at its start.

One `ClusterFacts` lives as long as the agent. The application fills this object. The backend and the Leases read it.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# The first Kubernetes version that enables user namespaces by default.
USER_NAMESPACES_SINCE = (1, 33)


class ClusterFacts:
    """The facts that the agent has found out about its cluster. Owned by the application, lives as long as the agent.

    Each fact has one method that sets it, and is set once before the agent creates its first pod.
    """

    def __init__(self) -> None:
        self._owner: Object | None = None
        self._user_namespaces: bool | None = None

    @property
    def owner(self) -> Object | None:
        """Return the owner reference for every pod and Lease of the agent. None: the settings name no owner."""
        return self._owner

    def set_owner(self, owner: Object | None) -> None:
        self._owner = owner

    @property
    def user_namespaces(self) -> bool:
        """Return whether actions run in user namespaces. False while the agent does not know yet."""
        return bool(self._user_namespaces)

    def set_user_namespaces(self, enabled: bool) -> None:
        self._user_namespaces = enabled

    @property
    def complete(self) -> bool:
        """Return whether the agent knows enough to create pods."""
        return self._user_namespaces is not None


async def user_namespaces(client: Client, settings: Settings) -> bool:
    """Decide whether actions run in user namespaces, by the settings or by the version of the cluster.

    The decision holds for the agent's whole life, so this function retries until the cluster answers.
    """
    setting = settings.environment.user_namespaces
    if setting != "auto":
        return setting == "always"
    try:
        answer = await client.retry(
            "get version", lambda: client.request("get", "version", "/version"), seconds=math.inf
        )
    except ClusterError as error:
        log.warning("cannot read the version of the cluster; actions run without user namespaces", error=error.message)
        return False
    version = tuple(int(re.sub(r"\D", "", answer.get(part, "")) or 0) for part in ("major", "minor"))
    log.info("cluster", version=answer.get("gitVersion"), user_namespaces=version >= USER_NAMESPACES_SINCE)
    return version >= USER_NAMESPACES_SINCE
