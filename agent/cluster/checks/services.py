"""The doctor's check of services: the API server admits a pod with a service. A dry run creates nothing."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.cluster.pod import manifest
from agent.cluster.requests import STRICT
from agent.domain.actions import Action, HealthCommand, Key, Service
from agent.domain.check_result import Finding, failed, ok, skipped, warning
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.settings import Settings

SERVICES = "services"
PROBE = Service("probe", "", ports=(5432,), health=HealthCommand(("true",)), scratch=("/data",))
ADVICE = "change the policy that the message names, or set services.max to 0"
PRIVILEGED_ADVICE = "let the namespace of actions admit privileged pods, or empty policy.privileged_services"


async def examine(client: Client, settings: Settings, image: str) -> Finding:
    """Ask the API server whether it would create a pod with a service."""
    if not settings.services.max:
        return skipped(SERVICES, "switched off (services.max is 0)")
    if settings.environment.pod_template.get("spec", {}).get("hostNetwork"):
        return warning(SERVICES, "refused, because the pod template sets hostNetwork", "remove hostNetwork from it")
    service = replace(PROBE, image=image)
    if refusal := await dry_run(client, settings, service):
        return failed(SERVICES, refusal, ADVICE)
    if not settings.policy.privileged_services:
        return ok(SERVICES, "a pod with a service is admitted")
    if refusal := await dry_run(client, settings, replace(service, privileged=True)):
        return warning(SERVICES, f"privileged services are not admitted: {refusal}", PRIVILEGED_ADVICE)
    return ok(SERVICES, "a pod with a privileged service is admitted")


async def dry_run(client: Client, settings: Settings, service: Service) -> str:
    """Return why the API server refuses a pod with this service, "" if it does not."""
    name, namespace = f"doctor-{secrets.token_hex(4)}", settings.cluster.namespace
    action = Action(Key(name), service.image, ("true",), services=(service,))
    plan = manifest.Plan(action, f"sealci-{name}", namespace, name, secrets.token_hex(16), timeout=60.0)
    try:
        await client.request(
            "create",
            "pods",
            f"/api/v1/namespaces/{namespace}/pods",
            body=manifest.pod(plan, settings),
            query=STRICT | {"dryRun": "All"},
        )
    except ClusterError as error:
        return error.message
    return ""
