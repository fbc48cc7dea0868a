"""What the agent may have to do in the namespace of actions, right by right: the reason of each line of its Role.

The table is the one place where they are written down; the doctor asks the API about each, and a test holds the chart's
Role equal to it. Nothing outside that namespace is needed, and Secrets are only made and removed, never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.domain.check_result import Finding, failed, ok
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from agent.settings import Settings

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
COORDINATION = "coordination.k8s.io"


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource of the namespace, and what it is for. `resource` may have a subresource behind `/`."""

    group: str
    resource: str
    verb: str
    purpose: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


RIGHTS = (
    Right("", "pods", "create", "an environment is a pod"),
    Right("", "pods", "get", "a create whose answer was lost is looked up"),
    Right("", "pods", "list", "the watch begins with a list"),
    Right("", "pods", "watch", "what happens to environments is seen by one watch"),
    Right("", "pods", "patch", "a session of a dead agent is claimed by a patch of its pod"),
    Right("", "pods", "delete", "environments are removed"),
    Right("", "pods/log", "get", "logs are read"),
    Right("", "pods/exec", "get", "files are copied out and commands stopped by exec"),
    Right("", "pods/exec", "create", "Kubernetes 1.35 and newer asks for it too when an exec is opened"),
    Right("", "secrets", "create", "the secrets of an action travel in a Secret of its own"),
    Right("", "secrets", "delete", "one that an earlier try left is made anew"),
    Right("", "events", "list", "the log of a failed set-up tells the pod's events"),
)
LEASE_RIGHTS = tuple(
    Right(COORDINATION, "leases", verb, purpose)
    for verb, purpose in (
        ("create", "the agent says that it lives"),
        ("list", "the agents of the pool know each other"),
        ("watch", "a death is noticed"),
        ("patch", "the agent goes on living"),
        ("delete", "an agent that leaves gives its Lease back"),
    )
)


def needed(settings: Settings) -> tuple[Right, ...]:
    """Return the rights that these settings ask for."""
    anchor = settings.agent.anchor
    found = RIGHTS + (LEASE_RIGHTS if settings.agent.adoption else ())
    return (*found, Right("", "configmaps", "get", "the anchor owns all pods", anchor)) if anchor else found


async def allowed(client: Client, namespace: str, right: Right) -> tuple[bool, str]:
    """Ask the API whether the agent has a right; returns its reason too.

    Raises:
        ClusterError: it does not say.
    """
    resource, _, subresource = right.resource.partition("/")
    attributes: dict[str, Any] = {
        "namespace": namespace,
        "verb": right.verb,
        "group": right.group,
        "resource": resource,
        "subresource": subresource,
        "name": right.name,
    }
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await client.request("create", "selfsubjectaccessreviews", REVIEWS, body=body)
    status = answer.get("status", {})
    return bool(status.get("allowed")), str(status.get("reason") or status.get("evaluationError") or "")


async def examine(client: Client, settings: Settings) -> AsyncIterator[tuple[Right, Finding]]:
    """Yield each right that is needed, and whether the agent has it."""
    namespace = settings.cluster.namespace
    for right in needed(settings):
        check = f"right: {right}"
        try:
            granted, reason = await allowed(client, namespace, right)
        except ClusterError as error:
            yield right, failed(check, error.message, "the API must answer SelfSubjectAccessReviews")
            continue
        if granted:
            yield right, ok(check, right.purpose)
        else:
            why = f"not allowed in namespace {namespace}, but {right.purpose}{f' ({reason})' if reason else ''}"
            group = f' of apiGroup "{right.group}"' if right.group else ""
            advice = f'add the verb "{right.verb}" on "{right.resource}"{group} to the agent\'s Role in {namespace}'
            yield right, failed(check, why, advice)
