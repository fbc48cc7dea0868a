"""The one object that owns everything this release makes: a ConfigMap in the namespace of actions, made by the chart.

Read once, before the first pod and the first Lease, because both name it as their owner: when the release is
uninstalled the ConfigMap goes with it, and the cluster's own garbage collection removes what is left of the agents,
whoever is still alive to do so.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from agent.domain.backoff import Backoff
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.settings import Settings

log = structlog.get_logger(__name__)

FIRST_PAUSE = 0.4
LONGEST_PAUSE = 10.0


async def find(client: Client, settings: Settings) -> Object | None:
    """Return the reference to the owner, or None when the settings name none; waits as long as it cannot be read.

    Without it nothing may be made: what has no owner would outlive the release.
    """
    name = settings.agent.anchor
    if not name:
        return None
    path = f"/api/v1/namespaces/{settings.cluster.namespace}/configmaps/{name}"
    backoff, told = Backoff(FIRST_PAUSE, LONGEST_PAUSE, least_share=0.5), ""
    while True:
        try:
            found = await client.request("get", "configmaps", path)
        except ClusterError as error:
            if error.message != told:
                log.warning("the anchor of the release cannot be read: nothing is run before", error=error.message)
            told = error.message
            await asyncio.sleep(backoff.next())
        else:
            return {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": found["metadata"]["uid"]}
