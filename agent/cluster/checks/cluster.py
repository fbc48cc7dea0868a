"""The cluster's half of `sealci-agent doctor`: API server, clock, permissions, quota, and one pod as a probe.

A check sends one or two requests, and the probe takes some seconds. The checks change nothing in the cluster except the
probe's pod, which is created in a pool of its own and deleted.
"""

from __future__ import annotations

from contextlib import aclosing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from agent.cluster.checks import claim, class_pods, permissions, probe_pod, services
from agent.domain.check_result import Finding, Verdict, failed, ok, skipped, warning
from agent.domain.errors import ClusterError
from agent.domain.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.cluster.api.client import Client
    from agent.settings import Settings

CLOCK = "clock"
QUOTA = "quota"
# Clock skew in seconds from which the check fails. A machine whose clock is further behind rejects new certificates and
# tokens, because they are usually valid from the second of their creation.
MAX_SKEW_SECONDS = 60.0
# Permissions without which the probe's pod could not run to its end, or could not be deleted.
PROBE_NEEDS = frozenset({"create pods", "list pods", "watch pods", "delete pods"})
# The resource requests of container `helper`, in addition to those of the action.
HELPER_REQUESTS = {"requests.cpu": "10m", "requests.memory": "32Mi"}


async def examine(client: Client, settings: Settings, image: str, seconds: float) -> AsyncGenerator[Finding]:
    """Yield the findings of all checks. A finding comes before the findings that it explains."""
    try:
        answer = await client.request("get", "version", "/version")
    except ClusterError as error:
        advice = "check cluster.kubeconfig and cluster.context, or the service account, and the route to the API server"
        yield failed("cluster", error.message, advice)
        return
    yield ok("cluster", f"Kubernetes {answer.get('gitVersion', '?')} answers")
    yield clock(client)
    missing = []
    async for right, finding in permissions.examine(client, settings):
        yield finding
        if finding.verdict is Verdict.FAILED:
            missing.append(str(right))
    yield await quota(client, settings)
    if settings.caches.store == "claim":
        yield await claim.check_claim(client, settings)
    if lacking := [right for right in missing if right in PROBE_NEEDS]:
        yield skipped("probe", f"without the right to {lacking[0]} no pod can be created and deleted")
        return
    yield await services.examine(client, settings, image)
    async with aclosing(class_pods.examine(client, settings, image)) as findings:
        async for finding in findings:
            yield finding
    async with aclosing(probe_pod.examine(client, settings, image, seconds)) as findings:
        async for finding in findings:
            yield finding


def clock(client: Client) -> Finding:
    """Compare this machine's clock with the API server's clock, as the Date header of its last answer shows it."""
    ahead = client.ahead.total_seconds()
    if not ahead:
        return ok(CLOCK, "within 2 s of the API server's")
    detail = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the API server's"
    advice = "synchronise the node's clock (NTP); the agent corrects the difference, but certificates and tokens do not"
    return failed(CLOCK, detail, advice) if abs(ahead) > MAX_SKEW_SECONDS else warning(CLOCK, detail, advice)


async def quota(client: Client, settings: Settings) -> Finding:
    """Check whether the namespace's quotas have room for one action with default resources in each slot."""
    namespace = settings.cluster.namespace
    try:
        answer = await client.request("list", "resourcequotas", f"/api/v1/namespaces/{namespace}/resourcequotas")
    except ClusterError as error:
        if error.status == 403:
            return skipped(
                QUOTA,
                "no right to list resourcequotas (the agent itself needs none); the probe shows whether a pod fits",
            )
        return failed(QUOTA, error.message, "the API server must answer")
    statuses = [each.get("status", {}) for each in answer.get("items", ())]
    if not statuses:
        return ok(QUOTA, f"no quota in namespace {namespace}")
    slots = settings.agent.slots
    room, resource = min((free_room(status, settings) for status in statuses), key=lambda pair: pair[0])
    if room >= slots:
        return ok(QUOTA, f"room for {slots} default actions at once")
    detail = f"{resource} leaves room for {room:.0f} more default actions, and the agent has {slots} slots"
    return warning(QUOTA, detail, "raise the ResourceQuota, or lower agent.slots or policy.default_*")


def free_room(status: dict[str, Any], settings: Settings) -> tuple[Decimal, str]:
    """Return how many actions with default resources a quota still allows, and the resource that sets this limit."""
    policy = settings.policy
    needs = {
        "pods": Decimal(1),
        "count/pods": Decimal(1),
        "requests.cpu": quantity(policy.default_cpu or "0") + quantity(HELPER_REQUESTS["requests.cpu"]),
        "requests.memory": quantity(policy.default_memory or "0") + quantity(HELPER_REQUESTS["requests.memory"]),
    }
    needs |= {"cpu": needs["requests.cpu"], "memory": needs["requests.memory"]}
    fits = [(Decimal("Infinity"), "")]
    for name, hard in status.get("hard", {}).items():
        if need := needs.get(name):
            rest = quantity(hard) - quantity(status.get("used", {}).get(name, "0"))
            fits.append((max(rest // need, Decimal(0)), name))
    return min(fits, key=lambda pair: pair[0])
