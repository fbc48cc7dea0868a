"""Build the containers of services, their host names and their volumes. Pure.

Services are regular containers of the action's pod. A native sidecar would start only after the sidecar before is
ready, and the kubelet would restart it after a crash, which would hide the crash and lose the data. Service containers
stand before container `action`, so that they start while the kubelet pulls the image of the action.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING

from agent.cluster.pod.action_order import escape_command, escape_variables, secret_variable
from agent.domain.json import Object
from agent.domain.quantities import quantity

if TYPE_CHECKING:
    from agent.cluster.pod.manifest import Plan
    from agent.domain.actions import Service
    from agent.settings import Settings

# The name of a service's container begins with this text.
PREFIX = "service-"
# Seconds that one run of a health command may take.
PROBE_SECONDS = 10
# Seconds between the end of the wait for a service and the kubelet's own limit. The agent judges first, so that the
# reason of the failure is not the end of a container that the kubelet killed.
PROBE_SLACK_SECONDS = 10


def container_name(service: Service) -> str:
    return PREFIX + service.name


def describe_container(name: str) -> str:
    """Return what messages call a container: "service db" for the container of a service, else the container's name."""
    return f"service {name.removeprefix(PREFIX)}" if name.startswith(PREFIX) else name


def health_seconds(service: Service, settings: Settings) -> float:
    """Return the seconds until a service must be ready."""
    asked = service.health.timeout if service.health else None
    return asked or settings.services.timeout


def service_containers(plan: Plan, settings: Settings, security: Object) -> list[Object]:
    """Return the containers of all services. `security` is the security context of container `action`."""
    return [service_container(each, plan, settings, security) for each in plan.action.services]


def service_container(service: Service, plan: Plan, settings: Settings, security: Object) -> Object:
    """Return the container of a service. It has no volume but its scratch folders, and no variable but its own."""
    variables: list[Object] = [{"name": name, "value": escape_variables(text)} for name, text in service.env.items()]
    result: Object = {
        "name": container_name(service),
        "image": service.image,
        "imagePullPolicy": settings.environment.image_pull_policy,
        "env": variables + [secret_variable(name, name, plan) for name in service.secrets],
        "resources": service_resources(service, settings),
        # `privileged` and "no new privileges" exclude each other.
        "securityContext": {"privileged": True} if service.privileged else security,
        "volumeMounts": [
            {"name": scratch_volume(service, number), "mountPath": path} for number, path in enumerate(service.scratch)
        ],
    }
    if service.command:
        result["command"] = escape_command(list(service.command))
    if service.args:
        result["args"] = escape_command(list(service.args))
    if service.health is not None:
        result["startupProbe"] = {
            "exec": {"command": escape_command(list(service.health.command))},
            "periodSeconds": 1,
            "timeoutSeconds": PROBE_SECONDS,
            "failureThreshold": math.ceil(health_seconds(service, settings)) + PROBE_SLACK_SECONDS,
        }
    return result


def service_resources(service: Service, settings: Settings) -> Object:
    """Return requests and limits of a service: its own values, else the defaults of the settings."""
    asked, policy = service.resources, settings.policy
    requests = {"cpu": asked.cpu or settings.services.cpu, "memory": asked.memory or settings.services.memory}
    # Kubernetes evicts a pod whose volumes exceed the sum of its containers' limits. Without a share of its own, a
    # service would use the share of the action.
    disk = asked.ephemeral_storage or policy.max_ephemeral_storage or settings.environment.workspace_limit
    limits = {"ephemeral-storage": disk}
    if disk:
        # Without a request, Kubernetes would reserve the whole limit on the node.
        requests["ephemeral-storage"] = asked.ephemeral_storage or "0"
    if policy.limit_memory:
        limits["memory"] = requests["memory"]
    if policy.limit_cpu:
        limits["cpu"] = requests["cpu"]
    found = {"requests": requests, "limits": limits}
    return {kind: {name: text for name, text in values.items() if text} for kind, values in found.items()}


def scratch_volume(service: Service, number: int) -> str:
    """Return the name of the volume of a scratch folder, which Kubernetes limits to 63 characters."""
    return f"scratch-{service.name}-{number}"


def scratch_volumes(plan: Plan, settings: Settings) -> list[Object]:
    """Return a volume for each scratch folder of each service."""
    limit = settings.environment.workspace_limit
    return [
        {"name": scratch_volume(service, number), "emptyDir": {"sizeLimit": limit} if limit else {}}
        for service in plan.action.services
        for number in range(len(service.scratch))
    ]


def host_aliases(plan: Plan) -> list[Object]:
    """Return the entry of the hosts files by which all containers find the services."""
    names = [name for service in plan.action.services for name in (service.name, *service.aliases)]
    return [{"ip": "127.0.0.1", "hostnames": names}] if names else []


def largest_request(plan: Plan, settings: Settings) -> str:
    """Return a sentence about what the services of a pod request, for the report of a pod that finds no room.

    Returns "" without services.
    """
    rows = [(each, service_resources(each, settings)["requests"]) for each in plan.action.services]
    if not rows:
        return ""
    largest, requests = max(rows, key=lambda row: size_of(row[1]))
    cpu, memory = sum_text(rows, "cpu"), sum_text(rows, "memory")
    return (
        f"{len(rows)} services add cpu {cpu} and memory {memory} to the request of the pod; the largest is "
        f"{largest.name} with cpu {requests.get('cpu', '0')} and memory {requests.get('memory', '0')}"
    )


def size_of(requests: Object) -> tuple[Decimal, Decimal]:
    return quantity(requests.get("memory", "0")), quantity(requests.get("cpu", "0"))


def sum_text(rows: list[tuple[Service, Object]], resource: str) -> str:
    """Return the sum of a resource as a quantity: CPU in thousandths, memory in MiB."""
    total = sum((quantity(requests.get(resource, "0")) for _, requests in rows), Decimal(0))
    return f"{math.ceil(total * 1000)}m" if resource == "cpu" else f"{math.ceil(total / 2**20)}Mi"
