"""What the cluster can do, asked once at the start."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# On by default from here on, and refused by no API server that is newer.
USER_NAMESPACES_SINCE = (1, 33)


async def user_namespaces(client: Client, settings: Settings) -> bool:
    """Whether actions run in user namespaces: as the settings say, or as the cluster's version promises.

    Asks for as long as the cluster does not answer: what is decided here holds for the agent's whole life.
    """
    wish = settings.environment.user_namespaces
    if wish != "auto":
        return wish == "always"
    try:
        answer = await client.retry(
            "get version", lambda: client.request("get", "version", "/version"), seconds=math.inf
        )
    except ClusterError as error:
        log.warning(
            "the version of the cluster cannot be read: actions run without user namespaces", error=error.message
        )
        return False
    found = tuple(int(re.sub(r"\D", "", answer.get(part, "")) or 0) for part in ("major", "minor"))
    log.info("cluster", version=answer.get("gitVersion"), user_namespaces=found >= USER_NAMESPACES_SINCE)
    return found >= USER_NAMESPACES_SINCE
