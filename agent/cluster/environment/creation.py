"""The two requests by which an environment comes: its pod, and at once after it its Secret.

Both may have been applied by a try whose answer was lost, so what exists already is looked at before it is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod.labels import SESSION
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.cluster.api.client import Client


# Shorter than the set-up waits for a Secret that is missing.
SECRET_PATIENCE = 20.0


async def create_pod(client: Client, path: str, body: Object) -> Object:
    """Create a pod; one that exists already and holds the same session is our own.

    Raises:
        ClusterError: refused, or another's pod stands in the way.
    """
    try:
        return await client.request("create", "pods", path, body=body)
    except ClusterError as error:
        if error.status != 409 or error.retryable:
            raise
        found = await standing(client, f"{path}/{body['metadata']['name']}")
        # Admission may have added annotations of its own; the session's holds our nonce.
        if found["metadata"].get("annotations", {}).get(SESSION) != body["metadata"]["annotations"][SESSION]:
            raise
        return found


async def standing(client: Client, path: str) -> Object:
    """Read the pod that stands in the way; one that is gone meanwhile does not any more."""
    try:
        return await client.request("get", "pods", path)
    except ClusterError as error:
        if error.status != 404:
            raise
        raise ClusterError(error.message, status=404, retryable=True) from error


async def create_secret(client: Client, body: Object, tell: Callable[[str], Awaitable[None]] | None = None) -> None:
    """Create a Secret; one that exists already goes with an earlier pod of ours, so it is made anew.

    Raises:
        ClusterError: refused, or not possible for `SECRET_PATIENCE` seconds; `tell` hears what is awaited.
    """
    path = f"/api/v1/namespaces/{body['metadata']['namespace']}/secrets"

    async def attempt() -> Object:
        try:
            return await client.request("create", "secrets", path, body=body)
        except ClusterError as error:
            if error.status != 409:
                raise
            await delete_secret(client, f"{path}/{body['metadata']['name']}")
            raise ClusterError(error.message, status=409, retryable=True) from error

    await client.retry("create secret", attempt, seconds=SECRET_PATIENCE, notify=tell)


async def delete_secret(client: Client, path: str) -> None:
    """Delete a Secret that may be gone already."""
    try:
        await client.request("delete", "secrets", path)
    except ClusterError as error:
        if error.status != 404:
            raise
