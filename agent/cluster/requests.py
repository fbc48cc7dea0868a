"""The requests that create and delete an environment's Pod and Secret.

The API server may have applied a request whose answer was lost. If the API server answers that an object exists
already, the agent therefore compares this object with the requested object. Only a difference is a failure. Nothing
here keeps state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.api.rate_limit import Priority
from agent.cluster.pod.labels import SESSION
from agent.cluster.pod.resources import fit_helpers
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.cluster.api.client import Client


# Maximum number of times that the agent fits its own containers into the namespace's LimitRanges. Once may not be
# enough, because a refusal may hide another violation.
MAX_FITS = 4
# Without this query, the API server silently drops a misspelt field of `environment.pod_template`.
STRICT = {"fieldValidation": "Strict"}


async def create_fitting_pod(client: Client, path: str, body: Object, priority: Priority = Priority.NEW) -> Object:
    """Create a pod. If a LimitRange refuses the agent's own containers, fit their resources to its bounds and retry.

    Raises:
        ClusterError: the API server refuses the pod, or a pod of another session has its name.
    """
    for _ in range(MAX_FITS):
        try:
            return await create_pod(client, path, body, priority)
        except ClusterError as error:
            fitted = fit_helpers(body, error.message) if error.status == 403 else None
            if fitted is None:
                raise
            body = fitted
    return await create_pod(client, path, body, priority)


async def create_pod(client: Client, path: str, body: Object, priority: Priority = Priority.NEW) -> Object:
    """Create a pod. An existing pod of the same session is the result of an earlier request, and is returned.

    Raises:
        ClusterError: the API server refuses the pod, or a pod of another session has its name.
    """
    try:
        return await client.request("create", "pods", path, body=body, query=STRICT, priority=priority)
    except ClusterError as error:
        if error.status != 409 or error.retryable:
            raise
        found = await read_conflicting_pod(client, f"{path}/{body['metadata']['name']}")
        # Only the session annotation is compared, which contains the nonce. Admission webhooks may add other
        # annotations.
        if found["metadata"].get("annotations", {}).get(SESSION) != body["metadata"]["annotations"].get(SESSION):
            raise
        return found


async def read_conflicting_pod(client: Client, path: str) -> Object:
    """Read the existing pod that has the name of a pod to create. `path` is the API path of the existing pod.

    Raises:
        ClusterError: the pod cannot be read. The error is retryable if the pod is gone, because the pod's name is free
        again.
    """
    try:
        return await client.request("get", "pods", path)
    except ClusterError as error:
        if error.status != 404:
            raise
        raise ClusterError(error.message, status=404, retryable=True) from error


async def create_secret(
    client: Client, body: Object, retry_seconds: float, notify: Callable[[str], Awaitable[None]] | None = None
) -> None:
    """Create a Secret. Replace a Secret of the same name, because it belongs to an earlier pod of the session.

    `notify` gets each reason to retry, for people.

    Raises:
        ClusterError: the API server refuses the Secret, or retries failed for `retry_seconds`.
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

    await client.retry("create secret", attempt, seconds=retry_seconds, notify=notify)


async def delete_secret(client: Client, path: str) -> None:
    """Delete a Secret. A missing Secret is no error."""
    try:
        await client.request("delete", "secrets", path)
    except ClusterError as error:
        if error.status != 404:
            raise


async def delete_pod(
    client: Client, path: str, name: str, uid: str, grace: int | None, retry_seconds: float, *, version: str = ""
) -> bool:
    """Request the deletion of the pod with this UID, and with this resource version if `version` is given.

    `grace` is the grace period in seconds. None means the grace period that the pod names. Return False if no pod
    matches.

    Raises:
        ClusterError: the API server refuses, or retries failed for `retry_seconds`.
    """
    preconditions = {"uid": uid} | ({"resourceVersion": version} if version else {})
    body: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": preconditions}
    if grace is not None:
        body["gracePeriodSeconds"] = grace
    try:
        await client.retry(
            "delete pod", lambda: client.request("delete", "pods", f"{path}/{name}", body=body), seconds=retry_seconds
        )
    except ClusterError as error:
        if error.status in (404, 409):
            return False
        raise
    return True


async def find_own_uid(client: Client, path: str, name: str, nonce: str, retry_seconds: float) -> str:
    """Return the UID of the pod that an unconfirmed create request may have made. "" if there is none.

    Raises:
        ClusterError: the pod cannot be read.
    """
    try:
        found = await client.retry(
            "get pod", lambda: client.request("get", "pods", f"{path}/{name}"), seconds=retry_seconds
        )
    except ClusterError as error:
        if error.status == 404:
            return ""
        raise
    return str(found["metadata"]["uid"]) if nonce in str(found["metadata"].get("annotations", {})) else ""
