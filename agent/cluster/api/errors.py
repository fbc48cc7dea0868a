"""Failed answers of the Kubernetes API as `ClusterError`: which reason an action fails with, and whether to retry.

The API has no error codes below the HTTP status, so the rules in this module search the message for phrases. Nothing
here keeps state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.errors import ClusterError, Reason

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

# Maximum number of characters of the API server's message that an error keeps.
MAX_MESSAGE = 2000


@dataclass(frozen=True, slots=True)
class Rule:
    """What a response of the API server with an error status means. The first rule of `RULES` that matches decides."""

    statuses: Container[int]
    needle: str
    """Text that the message must contain. Empty matches every message."""
    reason: Reason
    retryable: bool
    advice: str = ""
    """What a person can change. It follows the message."""

    def matches(self, status: int, message: str) -> bool:
        return status in self.statuses and self.needle in message


# Advice for a refusal of the admission plugin LimitRanger, such as "maximum memory usage per Container is 256Mi, but
# limit is 512Mi". The message does not name the container, which may also be one of the agent's own (`helper`,
# `repository`).
LIMIT_RANGE = (
    "the LimitRange of the namespace decides: change `resources` of the action, policy.default_* of the agent, or "
    "environment.helper_resources and environment.clone_resources (the agent's own containers)"
)
MISSING_LIMITS = (
    "the ResourceQuota of the namespace wants this quantity in every container: set policy.limit_cpu (CPU), "
    "policy.max_memory (memory) and environment.helper_resources of the agent, or defaults in a LimitRange"
)
POD_SECURITY = (
    "the namespace enforces a Pod Security Standard: set environment.profile=restricted, or use another namespace"
)
POD_TEMPLATE = "an action sets no field of its pod: correct environment.pod_template"
NO_NAMESPACE = "create the namespace with `kubectl create namespace`, or set cluster.namespace to another one"

RULES = (
    # A 401 means that the token was rotated. The next request reads the new token.
    Rule({401, 429, *range(500, 1000)}, "", Reason.CLUSTER_UNAVAILABLE, True),
    Rule({409}, "object is being deleted", Reason.CLUSTER_UNAVAILABLE, True),
    # When two creations count against a quota at the same time, the API server answers one of them with this conflict.
    Rule({409}, "please apply your changes to the latest version", Reason.CLUSTER_UNAVAILABLE, True),
    Rule({403}, "exceeded quota", Reason.QUOTA_EXCEEDED, True),
    # A retry cannot help, because the quota bounds a resource for which a container of the pod states no quantity.
    Rule({403}, "failed quota: ", Reason.INVALID_CONFIGURATION, False, MISSING_LIMITS),
    # The API server gives this answer while the namespace or the API server itself is still starting.
    Rule({403, 404}, "error looking up service account", Reason.CLUSTER_UNAVAILABLE, True),
    Rule({403, 404}, "not yet been initialized", Reason.CLUSTER_UNAVAILABLE, True),
    Rule({403, 404}, "no matches for kind", Reason.CLUSTER_UNAVAILABLE, True),
    # A LimitRange sets its default limit before the API server compares the request with the limit. An action that
    # requests more than this default is therefore refused.
    Rule({422}, "must be less than or equal to", Reason.INVALID_CONFIGURATION, False, LIMIT_RANGE),
    Rule({400}, "strict decoding error", Reason.CLUSTER_UNAVAILABLE, False, POD_TEMPLATE),
    Rule({400, 422}, "", Reason.INVALID_CONFIGURATION, False),
    # An action cannot set the fields that the admission plugin PodSecurity judges, so the user is not at fault.
    Rule({403}, "violates PodSecurity", Reason.CLUSTER_UNAVAILABLE, False, POD_SECURITY),
    Rule({404}, 'namespaces "', Reason.CLUSTER_UNAVAILABLE, False, NO_NAMESPACE),
    # An admission webhook denied the pod. A 403 that no rule matches means that the agent lacks a permission.
    Rule({403}, "denied the request", Reason.INVALID_CONFIGURATION, False),
    Rule({403}, " usage per Container is ", Reason.INVALID_CONFIGURATION, False, LIMIT_RANGE),
    Rule({403}, " usage per Pod is ", Reason.INVALID_CONFIGURATION, False, LIMIT_RANGE),
    Rule({403}, " max limit to request ratio per ", Reason.INVALID_CONFIGURATION, False, LIMIT_RANGE),
    Rule({403}, "is invalid", Reason.INVALID_CONFIGURATION, False),
)


def failure(verb: str, resource: str, status: int, headers: Mapping[str, str], body: str) -> ClusterError:
    """Turn a failed answer into an error. If the body is not a Status object, the whole body is the error's message."""
    try:
        answer = json.loads(body)
        message = str(answer.get("message") or body)
    except (ValueError, AttributeError):
        message = body
    rule = matching_rule(status, message)
    advice = f"; {rule.advice}" if rule.advice else ""
    return ClusterError(
        f"{verb} {resource}: {message.strip()[:MAX_MESSAGE] or 'no message'} (HTTP {status}){advice}",
        reason=rule.reason,
        retryable=rule.retryable,
        retry_after=whole_seconds(headers.get("Retry-After")),
        status=status,
        has_advice=bool(rule.advice),
    )


def classify_status(status: int, message: str) -> tuple[Reason, bool]:
    """Return the reason that an action fails with, and whether a retry can help."""
    rule = matching_rule(status, message)
    return rule.reason, rule.retryable


def matching_rule(status: int, message: str) -> Rule:
    for rule in RULES:
        if rule.matches(status, message):
            return rule
    return Rule({status}, "", Reason.CLUSTER_UNAVAILABLE, False)


def whole_seconds(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, None if it is missing or a date. Kubernetes does not send a date."""
    return float(value) if value is not None and value.isdigit() else None
