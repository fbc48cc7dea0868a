"""The doctor's check of the claim for caches: whether it exists, and which pods can mount it at the same time.

The agent itself does not read the claim. A pod whose claim is missing waits for a node, so the doctor looks before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.check_result import Finding, failed, ok, skipped, warning
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.settings import Settings

CHECK = "caches: claim"
FORBIDDEN, NOT_FOUND = 403, 404
MANY, ONE_NODE, ONE_POD = "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"


async def check_claim(client: Client, settings: Settings) -> Finding:
    """Return whether the pods of actions can mount the claim `caches.claim`."""
    name, namespace = settings.caches.claim, settings.cluster.namespace
    path = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"
    try:
        found = await client.request("get", "persistentvolumeclaims", path)
    except ClusterError as error:
        if error.status == FORBIDDEN:
            return skipped(CHECK, "no right to get persistentvolumeclaims (the agent itself needs none)")
        if error.status == NOT_FOUND:
            detail = f"there is no claim {name} in namespace {namespace}, so actions with caches get no node"
            return failed(CHECK, detail, "create the claim, or change caches.claim")
        return failed(CHECK, error.message, "the API server must answer")
    modes, phase = found.get("spec", {}).get("accessModes", ()), found.get("status", {}).get("phase", "")
    advice = f"use a claim with the access mode {MANY}, as network file systems have it"
    if phase == "Lost":
        return failed(CHECK, f"the volume of the claim {name} is gone", "create the claim again")
    if MANY in modes:
        return ok(CHECK, f"{name} can be mounted on every node")
    if ONE_NODE in modes:
        detail = f"{name} has the access mode {ONE_NODE}: pods on a second node cannot start while it is in use"
        return warning(CHECK, detail, f"{advice}, or run all actions on one node")
    detail = f"{name} has the access modes {', '.join(modes) or 'none'}"
    why = "one pod at a time can mount it" if ONE_POD in modes else "no pod can write to it"
    return failed(CHECK, f"{detail}, so {why}", advice)
