"""Requests and limits of container `action`, and how the agent's own containers fit into a LimitRange.

The functions have no side effects. The agent has no permission to read LimitRanges, so it takes the numbers from the
API server's message. Only the containers `helper` and `repository` change, because no user asked for them. The agent
does not change the resources of container `action`, so a pod that is refused because of these stays refused.
"""

from __future__ import annotations

import copy
import re
from decimal import ROUND_CEILING, Decimal
from typing import TYPE_CHECKING

from agent.domain.json import Object
from agent.domain.quantities import MINIMA, quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.pod.manifest import Plan
    from agent.settings import Settings

# Names of the agent's own containers in the pod of an action.
HELPERS = ("helper", "repository")
# Disk in bytes for the copies of the log that the node keeps as the log of container `helper`.
LOG_COPY_BYTES = 128 << 20
NUMBER = r"([0-9][0-9A-Za-z.]{0,30})"
MAXIMUM = re.compile(rf"maximum ([a-z-]+) usage per Container is {NUMBER}, but (?:limit|request) is {NUMBER}")
MINIMUM = re.compile(rf"minimum ([a-z-]+) usage per Container is {NUMBER}, but (?:limit|request) is {NUMBER}")
RATIO = re.compile(rf"([a-z-]+) max limit to request ratio per Container is {NUMBER}, but provided ratio is {NUMBER}")
# Largest difference between a ratio and its value in a message of the API server, which has six digits after the point.
ROUNDING = Decimal("0.000001")


def resources(plan: Plan, settings: Settings) -> Object:
    """Return requests and limits: the action's values, else the defaults of the policy.

    If the policy sets a maximum for a resource, the resource has a limit even if the action does not name the resource.
    """
    asked, policy = plan.action.resources, settings.policy
    requests = {
        "cpu": asked.cpu or policy.default_cpu,
        "memory": asked.memory or policy.default_memory,
        "ephemeral-storage": asked.ephemeral_storage or policy.default_ephemeral_storage,
    }
    disk = requests["ephemeral-storage"] or policy.max_ephemeral_storage or settings.environment.workspace_limit
    limits = {"ephemeral-storage": disk}
    if disk and not requests["ephemeral-storage"]:
        # Without a request, Kubernetes would reserve the whole limit on the node.
        requests["ephemeral-storage"] = "0"
    # The default memory is an estimate. It becomes a limit only if `policy.max_memory` is set.
    if policy.limit_memory and (asked.memory or policy.max_memory):
        limits["memory"] = requests["memory"]
    if policy.limit_cpu:
        limits["cpu"] = requests["cpu"]
    found = {"requests": requests, "limits": limits}
    return {kind: {name: text for name, text in values.items() if text} for kind, values in found.items()}


def helper_resources(settings: Settings) -> Object:
    """Return requests and limits of container `helper`: the setting, and disk for the log unless the setting has it.

    Kubernetes evicts a pod whose volumes exceed the sum of its containers' limits. So the log must have a share of its
    own, or a long log would use up the action's share.
    """
    asked = settings.environment.helper_resources
    found = {kind: dict(asked.get(kind, {})) for kind in ("requests", "limits")}
    if not any("ephemeral-storage" in values for values in found.values()):
        # Without a request, Kubernetes would reserve the whole limit on the node.
        found["requests"]["ephemeral-storage"] = "0"
        found["limits"]["ephemeral-storage"] = str(settings.logs.max_total + LOG_COPY_BYTES)
    return {kind: values for kind, values in found.items() if values}


def fit_helpers(pod: Object, message: str) -> Object | None:
    """Return a copy of the pod whose containers `HELPERS` fit a LimitRange. None if no container changes.

    `message` is the API server's refusal of the pod, which names the bounds.
    """
    fitted: Object = copy.deepcopy(pod)
    for container in helpers(fitted):
        container["resources"] = fit(container.get("resources", {}), message)
    return fitted if fitted != pod else None


def helpers(pod: Object) -> Iterator[Object]:
    spec = pod["spec"]
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        if container["name"] in HELPERS:
            yield container


def fit(resources: Object, message: str) -> Object:
    """Return the requests and limits of one container, changed to fit the namespace's LimitRange.

    `message` is the refusal of the API server. If a value is outside a bound that the message names, the bound replaces
    the value.
    """
    requests, limits = dict(resources.get("requests", {})), dict(resources.get("limits", {}))
    for resource, bound, found in numbers(MAXIMUM, message):
        if equal(limits.get(resource, requests.get(resource)), found):
            for values in (requests, limits):
                if resource in values and quantity(values[resource]) > quantity(bound):
                    values[resource] = bound
    for resource, bound, found in numbers(MINIMUM, message):
        if equal(requests.get(resource, limits.get(resource)), found):
            for values in (requests, limits):
                if resource in values and quantity(values[resource]) < quantity(bound):
                    values[resource] = bound
    for resource, bound, found in numbers(RATIO, message):
        if resource in requests and resource in limits and quantity(bound) >= 1:
            limit = quantity(limits[resource])
            if abs(limit / quantity(requests[resource]) - quantity(found)) <= ROUNDING:
                requests[resource] = rounded_up(resource, limit / quantity(bound))
    changed = {"requests": requests, "limits": limits}
    return resources | {kind: values for kind, values in changed.items() if values}


def numbers(pattern: re.Pattern[str], message: str) -> Iterator[tuple[str, str, str]]:
    """Yield resource, allowed bound and refused quantity of each violation that the message quotes."""
    for match in pattern.finditer(message):
        resource, bound, found = match.groups()
        try:
            quantity(bound), quantity(found)
        except ValueError:
            continue
        if resource in MINIMA:
            yield resource, bound, found


def equal(text: str | None, found: str) -> bool:
    return text is not None and quantity(text) == quantity(found)


def rounded_up(resource: str, number: Decimal) -> str:
    """Return a quantity that is not below the number: CPU in thousandths, everything else in bytes."""
    scale, unit = (1000, "m") if resource == "cpu" else (1, "")
    return f"{(number * scale).to_integral_value(ROUND_CEILING)}{unit}"
