"""Plan the nudges of one pod: how large each resize is, when it is sent, and when the nudges stop. Pure.

A kubelet looks at its containers once a second. After it has carried out a resize, it looks at the resized pod at once.
A nudge is such a resize: it lowers the CPU request of container `helper` by 1m. The next look may still come too early,
because the runtime learns of the end of a container some milliseconds later. So nudges repeat after growing pauses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod.manifest import HELPER
from agent.domain.json import Object
from agent.domain.quantities import quantity

if TYPE_CHECKING:
    from collections.abc import Iterator

# Smallest CPU request after a nudge, in thousandths. The kernel has no smaller share than 2m.
FLOOR_MILLICORES = 2
# Largest number of nudges of one pod.
MAX_NUDGES = 6
# Seconds before each nudge of a series. docs/performance.md has the measurements.
PAUSES = (0.03, 0.05, 0.08, 0.12, 0.2, 0.3)


class NudgePlan:
    """The nudges that are left for one pod. It lives as long as the environment.

    `millicores` is the present CPU request of container `helper`. 0 stands for no request, which cannot be lowered.
    """

    def __init__(self, millicores: int, most: int = MAX_NUDGES) -> None:
        self.millicores = millicores
        self.left = most

    @property
    def possible(self) -> bool:
        """Return whether another nudge is allowed. Requests are only lowered, because a quota may refuse a rise."""
        return self.left > 0 and self.millicores > FLOOR_MILLICORES

    def pauses(self) -> Iterator[float]:
        """Yield the seconds before each nudge of a series, until the pod has no nudge left."""
        for pause in PAUSES:
            if not self.possible:
                return
            yield pause

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
