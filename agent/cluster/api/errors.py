"""Turn a response of the Kubernetes API that is no success into a ClusterError."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from agent.domain.errors import ClusterError, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping


INVALID = ("violates PodSecurity", "denied the request", "maximum ", "minimum ", "is invalid")


# A quota that two creations count at once answers with a conflict of its own.
CONFLICTS = ("object is being deleted", "please apply your changes to the latest version")


TRANSIENT = ("error looking up service account", "not yet been initialized", "no matches for kind")


def failure(verb: str, resource: str, status: int, headers: Mapping[str, str], body: str) -> ClusterError:
    """Turn an answer of the API that is no success into an error with its rule."""
    try:
        answer = json.loads(body)
        message = str(answer.get("message") or body)
    except (ValueError, AttributeError):
        message = body
    reason, retryable = classify_status(status, message)
    return ClusterError(
        f"{verb} {resource}: {message.strip()[:2000] or 'no message'} (HTTP {status})",
        reason=reason,
        retryable=retryable,
        retry_after=whole_seconds(headers.get("Retry-After")),
        status=status,
    )


def classify_status(status: int, message: str) -> tuple[Reason, bool]:
    """Return what an action fails with for this answer, and whether asking again can help."""
    if status in (401, 429) or status >= 500:
        return Reason.CLUSTER_UNAVAILABLE, True
    if status == 409 and any(text in message for text in CONFLICTS):
        return Reason.CLUSTER_UNAVAILABLE, True
    if status == 403 and "exceeded quota" in message:
        return Reason.QUOTA_EXCEEDED, True
    if status in (403, 404) and any(text in message for text in TRANSIENT):
        return Reason.CLUSTER_UNAVAILABLE, True
    if status in (400, 422) or (status == 403 and any(text in message for text in INVALID)):
        return Reason.INVALID_CONFIGURATION, False
    return Reason.CLUSTER_UNAVAILABLE, False


def whole_seconds(value: str | None) -> float | None:
    """Read a Retry-After header; dates are not used by Kubernetes."""
    return float(value) if value is not None and value.isdigit() else None
