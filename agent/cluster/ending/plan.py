"""Plan the nudges of one pod: how large each resize is, how many there are, and when. Pure.

A kubelet looks at its containers once a second. After a resize it looks at the resized pod at once. A nudge is such a
resize: it lowers the CPU request of container `helper` by 1m. The look may come too early, because the runtime learns
of the end of a container some milliseconds after the last byte of the log. So nudges repeat after growing pauses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod.fields import container_status, is_running, terminated_state
from agent.cluster.pod.manifest import ACTION, HELPER
from agent.domain.json import Object
from agent.domain.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import Iterable

# Largest number of this agent's pods on a node that start or end at the same time, with which nudges still help.
MAX_CHANGING_PODS = 4
# Smallest CPU request after a nudge, in thousandths. The kernel has no smaller share than 2m.
FLOOR_MILLICORES = 2
# Largest number of nudges of one pod. One of them is kept for the deletion.
MAX_NUDGES, KEPT_NUDGES = 5, 1
# Seconds before each nudge after the end of the log. docs/performance.md has the measurements.
END_PAUSES = (0.05, 0.1, 0.2, 0.4)
# Seconds before each nudge after the request to delete the pod. After the first nudge, the kubelet ends container
# `helper` and stops the sandbox, which takes a quarter of a second.
DELETION_PAUSES = (0.0, 0.6, 0.6)


class NudgePlan:
    """The nudges that are left for one pod. It lives as long as the environment.

    `millicores` is the present CPU request of container `helper`. 0 stands for no request, which cannot be lowered.
    """

    def __init__(self, millicores: int) -> None:
        self.millicores = millicores
        self.left = MAX_NUDGES

    @property
    def possible(self) -> bool:
        """Return whether the CPU request can be lowered once more. A quota may refuse to raise it again."""
        return self.left > 0 and self.millicores > FLOOR_MILLICORES

    def pauses(self, *, deleting: bool) -> tuple[float, ...]:
        """Return the seconds before each nudge of a series, after the end of the log or after the deletion."""
        room = min(self.left - (0 if deleting else KEPT_NUDGES), self.millicores - FLOOR_MILLICORES)
        return (DELETION_PAUSES if deleting else END_PAUSES)[: max(0, room)]

    def take(self) -> int:
        """Count one nudge. Return the new CPU request in thousandths."""
        self.left -= 1
        self.millicores -= 1
        return self.millicores


def helper_millicores(pod: Object) -> int:
    """Return the CPU request of container `helper` in whole thousandths. 0 if nudges cannot work on this pod."""
    # The API server refuses a resize that changes the QoS class. In a Guaranteed pod every request equals its limit.
    if pod.get("status", {}).get("qosClass") == "Guaranteed":
        return 0
    for container in pod.get("spec", {}).get("containers", ()):
        if container["name"] == HELPER:
            try:
                return int(quantity(container.get("resources", {}).get("requests", {}).get("cpu", "0")) * 1000)
            except ValueError:
                return 0
    return 0


def resize(uid: str, millicores: int) -> Object:
    """Return the body of the patch. The API server compares the UID."""
    container = {"name": HELPER, "resources": {"requests": {"cpu": f"{millicores}m"}}}
    return {"metadata": {"uid": uid}, "spec": {"containers": [container]}}


def is_refusal(status: int, message: str, pod: str) -> bool:
    """Return whether an answer of the API server means that it will refuse the next resize too.

    The reasons are a missing right, an API server without `pods/resize`, a quota, a LimitRange or a webhook. A pod that
    does not exist any more and a conflict are none.
    """
    if status == 404:
        return f'"{pod}"' not in message
    return 400 <= status < 500 and status not in (401, 409, 429)


def is_busy(pods: Iterable[Object], node: str) -> bool:
    """Return whether so many of the pods on the node start or end that its kubelet has no time for a further look."""
    changing = 0
    for pod in pods:
        if pod.get("spec", {}).get("nodeName") == node:
            changing += not is_running(container_status(pod.get("status", {}), ACTION))
    return changing > MAX_CHANGING_PODS


def action_ended(pod: Object) -> bool:
    """Return whether the status of the pod shows the end of the commands."""
    return terminated_state(container_status(pod.get("status", {}), ACTION)) is not None
