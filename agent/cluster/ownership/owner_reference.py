"""The owner of all pods and Leases of a release: a ConfigMap that the chart creates in the namespace of actions.

The agent reads the ConfigMap once, before it creates the first pod and the first Lease, because both name it as their
owner. When the release is uninstalled, the cluster's garbage collection deletes all pods and Leases of the ConfigMap.
This works also if no agent is alive any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from agent.backoff import Backoff
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# Upper bound in seconds of the first pause between two reads of the ConfigMap. `LONGEST_PAUSE` is the upper bound of
# every pause.
FIRST_PAUSE = 0.4
LONGEST_PAUSE = 10.0


async def find(client: Client, settings: Settings) -> Object | None:
    """Return the owner reference, or None if the settings name no owner. Retry until the ConfigMap can be read.

    The agent must not create a pod before this function returns. A pod without an owner would outlive the release.
    """
    name = settings.agent.anchor
    if not name:
        return None
    path = f"/api/v1/namespaces/{settings.cluster.namespace}/configmaps/{name}"
    # At least half of each pause is fixed, so that the agent does not send the next request at once.
    backoff, last_error = Backoff(FIRST_PAUSE, LONGEST_PAUSE, least_share=0.5), ""
    while True:
        try:
            found = await client.request("get", "configmaps", path)
        except ClusterError as error:
            # Log one line for each new reason, and not for each retry.
            if error.message != last_error:
                log.warning("cannot read the ConfigMap that owns all pods; no action runs before", error=error.message)
            last_error = error.message
            await asyncio.sleep(backoff.next())
        else:
            return {"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": found["metadata"]["uid"]}
