"""The doctor's check of classes of environments: a pod of each class, created as a dry run.

A dry run leaves no pod behind. Each check lives for one or two requests.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from agent.cluster.pod import manifest
from agent.cluster.requests import STRICT
from agent.domain.actions import Action, Key
from agent.domain.check_result import Finding, failed, ok, warning
from agent.domain.errors import ClusterError
from agent.settings import settings_of_class

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.cluster.api.client import Client
    from agent.settings import Settings


async def examine(client: Client, settings: Settings, image: str) -> AsyncGenerator[Finding]:
    """Yield a finding for each class. The pod runs `image`, as far as the API server can see."""
    for name in settings.environment.classes:
        yield await check_class(client, settings, name, image)


async def check_class(client: Client, settings: Settings, name: str, image: str) -> Finding:
    """Check whether the API server accepts a pod of a class, and whether a node fits its node selector."""
    check, of_class = f"class: {name}", settings_of_class(settings, name)
    namespace = settings.cluster.namespace
    body = manifest.pod(
        manifest.Plan(
            action=Action(Key("doctor"), image, ("true",), environment_class=name),
            name=f"sealci-doctor-{secrets.token_hex(6)}",
            namespace=namespace,
            agent_id="doctor",
            nonce=secrets.token_hex(16),
            timeout=of_class.policy.default_timeout,
        ),
        of_class,
    )
    try:
        path = f"/api/v1/namespaces/{namespace}/pods"
        await client.request("create", "pods", path, body=body, query=STRICT | {"dryRun": "All"})
    except ClusterError as error:
        return failed(check, error.message, f"change environment.classes.{name}, or the policy that the message names")
    accepted = f"the API server accepts its pods (profile {of_class.environment.profile})"
    selector = ",".join(f"{key}={value}" for key, value in body["spec"].get("nodeSelector", {}).items())
    if selector and await count_nodes(client, selector) == 0:
        advice = "add a node with these labels, or let an autoscaler add it"
        return warning(check, f"{accepted}, but no node has the labels {selector}", advice)
    return ok(check, accepted)


async def count_nodes(client: Client, selector: str) -> int | None:
    """Return the number of nodes with these labels, at most 1. None if the agent may not list nodes."""
    try:
        answer = await client.request("list", "nodes", "/api/v1/nodes", query={"labelSelector": selector, "limit": "1"})
    except ClusterError:
        return None
    return len(answer.get("items", ()))
