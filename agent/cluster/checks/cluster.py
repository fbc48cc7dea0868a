"""The cluster's half of the doctor: does it answer, may the agent do its work there, is there room, does a pod live.

Each check lives for a request or two, and the probe at the end for seconds. Nothing is changed but that one pod, which
is made in a pool of its own and removed.
"""

from __future__ import annotations

from contextlib import aclosing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from agent.cluster.checks import permissions, probe_pod
from agent.domain.check_result import Finding, Verdict, failed, ok, skipped, warning
from agent.domain.errors import ClusterError
from agent.domain.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.cluster.api.client import Client
    from agent.settings import Settings

CLOCK = "clock"
QUOTA = "quota"
# Certificates and tokens are commonly valid from the second they are made: farther ahead, they count as future ones.
MUCH_SECONDS = 60.0
# Without these a probe would not come to its end, or not go away again.
PROBE_NEEDS = frozenset({"create pods", "list pods", "watch pods", "delete pods"})
# What `files` asks for besides the action itself.
FILES = {"requests.cpu": "10m", "requests.memory": "32Mi"}


async def examine(client: Client, settings: Settings, image: str, seconds: float) -> AsyncGenerator[Finding]:
    """Yield one finding after another, those that explain others first."""
    try:
        answer = await client.request("get", "version", "/version")
    except ClusterError as error:
        advice = "check cluster.kubeconfig and cluster.context, or the service account, and the way to the API server"
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
    if lacking := [right for right in missing if right in PROBE_NEEDS]:
        yield skipped("probe", f"without the right to {lacking[0]} no pod can be made and removed")
        return
    async with aclosing(probe_pod.examine(client, settings, image, seconds)) as findings:
        async for finding in findings:
            yield finding


def clock(client: Client) -> Finding:
    """Compare this machine's clock with the API server's, by the last answer."""
    ahead = client.ahead.total_seconds()
    if not ahead:
        return ok(CLOCK, "within 2 s of the API server's")
    detail = f"{abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} the API server's"
    advice = "synchronise the node's clock (NTP): the agent corrects for it, certificates and tokens do not"
    return failed(CLOCK, detail, advice) if abs(ahead) > MUCH_SECONDS else warning(CLOCK, detail, advice)


async def quota(client: Client, settings: Settings) -> Finding:
    """Say whether the quotas of the namespace leave room for as many default actions as there are slots."""
    namespace = settings.cluster.namespace
    try:
        answer = await client.request("list", "resourcequotas", f"/api/v1/namespaces/{namespace}/resourcequotas")
    except ClusterError as error:
        if error.status == 403:
            return skipped(QUOTA, "no right to list resourcequotas (the agent itself needs none): the probe will show")
        return failed(QUOTA, error.message, "the API must answer")
    found = [each.get("status", {}) for each in answer.get("items", ())]
    if not found:
        return ok(QUOTA, f"none in namespace {namespace}")
    slots = settings.agent.slots
    room, what = min((left(status, settings) for status in found), key=lambda pair: pair[0])
    if room >= slots:
        return ok(QUOTA, f"room for {slots} default actions at once")
    detail = f"{what} leaves room for {room:.0f} more default actions, and the agent has {slots} slots"
    return warning(QUOTA, detail, "raise the ResourceQuota, or lower agent.slots or policy.default_*")


def left(status: dict[str, Any], settings: Settings) -> tuple[Decimal, str]:
    """Return how many default actions fit into what a quota leaves, and by which of its resources."""
    policy = settings.policy
    needs = {
        "pods": Decimal(1),
        "count/pods": Decimal(1),
        "requests.cpu": quantity(policy.default_cpu or "0") + quantity(FILES["requests.cpu"]),
        "requests.memory": quantity(policy.default_memory or "0") + quantity(FILES["requests.memory"]),
    }
    needs |= {"cpu": needs["requests.cpu"], "memory": needs["requests.memory"]}
    fits = [(Decimal("Infinity"), "")]
    for name, hard in status.get("hard", {}).items():
        if need := needs.get(name):
            rest = quantity(hard) - quantity(status.get("used", {}).get(name, "0"))
            fits.append((max(rest // need, Decimal(0)), name))
    return min(fits, key=lambda pair: pair[0])
