"""The one request by which pods go: exactly this pod, by its UID, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.errors import ClusterError

if TYPE_CHECKING:
    from agent.cluster.client import Client

Object = dict[str, Any]


async def delete_pod(client: Client, path: str, name: str, uid: str, grace: int | None, patience: float) -> bool:
    """Ask for the deletion of exactly this pod; False when there is none of this uid any more."""
    body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
    if grace is not None:
        body["gracePeriodSeconds"] = grace
    try:
        await client.patiently(
            "delete pod", lambda: client.request("delete", "pods", f"{path}/{name}", body=body), seconds=patience
        )
    except ClusterError as error:
        if error.status in (404, 409):
            return False
        raise
    return True
