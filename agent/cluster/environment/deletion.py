"""The one request by which pods go: exactly this pod, by its UID, once; and how that UID is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.cluster.api.client import Client


# Longer than its grace nobody waits for a pod in which no command has begun, seconds: a kubelet does not give up a pull
# that hangs, and there is nothing in it to be gentle with.
UNBEGUN = 10.0


async def delete_pod(
    client: Client, path: str, name: str, uid: str, grace: int | None, patience: float, *, version: str = ""
) -> bool:
    """Ask for the deletion of exactly this pod, with `version` only as it was then; False when there is none such."""
    preconditions = {"uid": uid} | ({"resourceVersion": version} if version else {})
    body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
    if grace is not None:
        body["gracePeriodSeconds"] = grace
    try:
        await client.retry(
            "delete pod", lambda: client.request("delete", "pods", f"{path}/{name}", body=body), seconds=patience
        )
    except ClusterError as error:
        if error.status in (404, 409):
            return False
        raise
    return True


async def own_uid(client: Client, path: str, name: str, nonce: str, seconds: float) -> str:
    """Look for a pod whose creation was asked for but never confirmed; "" when there is none of ours."""
    try:
        found = await client.retry("get pod", lambda: client.request("get", "pods", f"{path}/{name}"), seconds=seconds)
    except ClusterError as error:
        if error.status == 404:
            return ""
        raise
    return str(found["metadata"]["uid"]) if nonce in str(found["metadata"].get("annotations", {})) else ""
