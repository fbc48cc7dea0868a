"""What the agent finds out about its cluster once, at its start.

One `ClusterFacts` lives as long as the agent. The application fills this object. The backend and the Leases read it.
"""

from __future__ import annotations

import asyncio
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
# The first Kubernetes version whose kubelet looks at a pod after a resize (feature PLEGOnDemandRelist).
LOOK_AFTER_RESIZE_SINCE = (1, 36)


class ClusterFacts:
    """The facts that the agent has found out about its cluster. Owned by the application, lives as long as the agent.

    Each fact has one method that sets it, and is set once before the agent creates its first pod. `known` is set when
    the agent knows enough to create pods.
    """

    def __init__(self) -> None:
        self._owner: Object | None = None
        self._user_namespaces: bool | None = None
        self._nudges = True
        self.known = asyncio.Event()

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
        self.known.set()

    @property
    def nudges(self) -> bool:
        """Return whether a kubelet of the cluster's version looks at a pod after a resize."""
        return self._nudges

    def set_nudges(self, useful: bool) -> None:
        self._nudges = useful


async def learn_facts(facts: ClusterFacts, client: Client, settings: Settings) -> None:
    """Read the version of the cluster, and decide what depends on it.

    The decisions hold for the agent's whole life, so this function retries until the cluster answers.
    """
    version = await read_version(client)
    facts.set_nudges(version is None or version >= LOOK_AFTER_RESIZE_SINCE)
    setting = settings.environment.user_namespaces
    enabled = version is not None and version >= USER_NAMESPACES_SINCE if setting == "auto" else setting == "always"
    log.info("cluster", version=version and ".".join(map(str, version)), user_namespaces=enabled)
    facts.set_user_namespaces(enabled)


async def read_version(client: Client) -> tuple[int, int] | None:
    """Return the major and minor version of the API server. None if the API server refuses to name its version."""
    try:
        answer = await client.retry(
            "get version", lambda: client.request("get", "version", "/version"), seconds=math.inf
        )
    except ClusterError as error:
        log.warning("cannot read the version of the cluster; `auto` means no user namespaces", error=error.message)
        return None
    major, minor = (int(re.sub(r"\D", "", answer.get(part, "")) or 0) for part in ("major", "minor"))
    return major, minor
