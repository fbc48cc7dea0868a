"""Where the time of a set-up goes: how long an environment waited for a node, for images and containers, for its clone.

A timeline lives as long as its set-up and is shown every state of the pod that was seen. It goes by the
agent's own clock and the moments at which it saw things, because the times in a pod's status are whole seconds; only a
clone that began and ended between two looks is timed by them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod.manifest import REPOSITORY
from agent.cluster.pod.timestamps import parse_timestamp
from agent.domain.json import Object
from agent.domain.observations import Waiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.observations import Observation
    from agent.telemetry.metrics import Metrics


class SetupTiming:
    """The set-up of one pod, from the moment at which it was asked for. All times are monotonic seconds."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.scheduled: float | None = None
        self.cloning: float | None = None
        self.cloned: float | None = None
        self.counted = False

    def record(self, metrics: Metrics, pod: Object | None, seen: Observation, now: float) -> None:
        """Take a look at the pod, and count the phases once the set-up has ended, whatever its end is."""
        self.update(pod, now)
        if not self.counted and not isinstance(seen, Waiting):
            self.counted = True
            for phase, seconds in self.phases(now).items():
                metrics.phase_duration.labels(phase).observe(seconds)

    def update(self, pod: Object | None, now: float) -> None:
        """Note what a state of the pod tells for the first time."""
        if pod is None:
            return
        if self.scheduled is None and pod.get("spec", {}).get("nodeName"):
            self.scheduled = now
        statuses = pod.get("status", {}).get("initContainerStatuses", ())
        state: Object = next((each.get("state", {}) for each in statuses if each["name"] == REPOSITORY), {})
        if self.cloning is None and "running" in state:
            self.cloning = now
        ended = state.get("terminated")
        if self.cloned is None and ended:
            took = now - self.cloning if self.cloning is not None else lasted(ended)
            self.cloned = took

    def phases(self, now: float) -> Mapping[str, float]:
        """Return the seconds of each phase that was begun, for a set-up that ends now."""
        if self.scheduled is None:
            return {"schedule": now - self.began}
        result = {"schedule": self.scheduled - self.began}
        clone = self.cloned
        if clone is None and self.cloning is not None:
            clone = now - self.cloning
        if clone is not None:
            result["clone"] = clone
        result["pull"] = max(0.0, now - self.scheduled - (clone or 0.0))
        return result


def lasted(terminated: Object) -> float:
    """Return the seconds between the times of a container that has ended, 0 when they are not told."""
    began, ended = parse_timestamp(terminated.get("startedAt")), parse_timestamp(terminated.get("finishedAt"))
    return max(0.0, (ended - began).total_seconds()) if began and ended else 0.0
