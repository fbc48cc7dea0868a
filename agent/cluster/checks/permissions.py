"""The permissions that the agent needs in the namespace of actions, and the purpose of each.

The table in this module is the only list of these permissions. The doctor asks the API server about each permission,
and a test compares the table with the chart's Role. The agent needs no permission outside the namespace. The agent
creates and deletes Secrets and never reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.domain.check_result import Finding, failed, ok, warning
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from agent.settings import Settings

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
COORDINATION = "coordination.k8s.io"


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one resource of the namespace, with its purpose. `resource` may name a subresource after a `/`.

    Without an `optional` right, the agent is only slower.
    """

    group: str
    resource: str
    verb: str
    purpose: str
    name: str = ""
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}"


RIGHTS = (
    Right("", "pods", "create", "create the pod of an environment"),
    Right("", "pods", "get", "look up a pod after the answer to its creation was lost"),
    Right("", "pods", "list", "list all pods at the start of the watch"),
    Right("", "pods", "watch", "follow all environments by one watch"),
    Right("", "pods", "patch", "claim the session of a dead agent, or a warm pod, by a patch of the pod"),
    Right("", "pods", "delete", "delete the pod of an environment"),
    Right("", "pods/log", "get", "read logs"),
    Right("", "pods/exec", "get", "copy files out and stop commands by exec"),
    Right("", "pods/exec", "create", "open an exec on Kubernetes 1.35 and newer, which requires create and get"),
    Right("", "secrets", "create", "pass the secrets of an action to its pod in a Secret"),
    Right("", "secrets", "delete", "replace the Secret of an earlier attempt to create the environment"),
    Right("", "events", "list", "show the pod's events in the log of a failed set-up"),
)
NUDGE_RIGHT = Right(
    "", "pods/resize", "patch", "see the end of an action at once, by a small resize of container helper", optional=True
)
LEASE_RIGHTS = tuple(
    Right(COORDINATION, "leases", verb, purpose)
    for verb, purpose in (
        ("create", "create the Lease that shows the agent is alive"),
        ("list", "list the Leases of the other agents of the pool"),
        ("watch", "notice the death of another agent"),
        ("patch", "renew the agent's Lease"),
        ("delete", "delete the agent's Lease when the agent exits"),
    )
)


def required_rights(settings: Settings) -> tuple[Right, ...]:
    """Return the permissions that the agent needs with these settings."""
    anchor = settings.agent.anchor
    rights = RIGHTS + (LEASE_RIGHTS if settings.agent.adoption else ())
    rights += (NUDGE_RIGHT,) if settings.environment.nudge_kubelet else ()
    return (
        (*rights, Right("", "configmaps", "get", "read the ConfigMap that owns all pods", anchor)) if anchor else rights
    )


async def is_allowed(client: Client, namespace: str, right: Right) -> tuple[bool, str]:
    """Return whether the API server grants a permission to the agent, and the reason that the API server gives.

    Raises:
        ClusterError: the API server does not answer the question.
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
    """Yield each required permission, and whether the agent has it."""
    namespace = settings.cluster.namespace
    for right in required_rights(settings):
        check = f"right: {right}"
        try:
            granted, reason = await is_allowed(client, namespace, right)
        except ClusterError as error:
            yield right, failed(check, error.message, "the API must answer SelfSubjectAccessReviews")
            continue
        if granted:
            yield right, ok(check, right.purpose)
        else:
            why = (
                f"not allowed in namespace {namespace}, but needed to {right.purpose}{f' ({reason})' if reason else ''}"
            )
            group = f' of apiGroup "{right.group}"' if right.group else ""
            advice = f'add the verb "{right.verb}" on "{right.resource}"{group} to the agent\'s Role in {namespace}'
            if right.optional:
                yield right, warning(check, why, f"{advice}, or set environment.nudge_kubelet: false")
            else:
                yield right, failed(check, why, advice)
