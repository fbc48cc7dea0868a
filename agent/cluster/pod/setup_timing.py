"""Measure where the time of a set-up goes: the wait for a node, image pulls and container starts, the clone.

Times come from the agent's own clock at each watch event, because the times in a pod's status are whole seconds. Only a
clone that began and ended between two events is measured by the times in the status.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cluster.pod.fields import parse_timestamp
from agent.cluster.pod.manifest import REPOSITORY
from agent.domain.json import Object
from agent.domain.observations import Waiting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.observations import Observation
    from agent.telemetry.metrics import Metrics


class SetupTiming:
    """The phases of the set-up of one pod, since the agent's create request. It lives as long as the set-up.

    All times are monotonic seconds.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.scheduled_at: float | None = None
        self.clone_started_at: float | None = None
        self.clone_seconds: float | None = None
        self.recorded = False

    def record(self, metrics: Metrics, pod: Object | None, seen: Observation, now: float) -> None:
        """Apply a state of the pod. Record the phases in the metrics once, when the set-up has succeeded or failed."""
        self.update(pod, now)
        if not self.recorded and not isinstance(seen, Waiting):
            self.recorded = True
            for phase, seconds in self.phases(now).items():
                metrics.phase_duration.labels(phase).observe(seconds)

    def update(self, pod: Object | None, now: float) -> None:
        """Store the time of each step that the pod shows for the first time."""
        if pod is None:
            return
        if self.scheduled_at is None and pod.get("spec", {}).get("nodeName"):
            self.scheduled_at = now
        statuses = pod.get("status", {}).get("initContainerStatuses", ())
        state: Object = next((each.get("state", {}) for each in statuses if each["name"] == REPOSITORY), {})
        if self.clone_started_at is None and "running" in state:
            self.clone_started_at = now
        terminated = state.get("terminated")
        if self.clone_seconds is None and terminated:
            started = self.clone_started_at
            self.clone_seconds = now - started if started is not None else duration(terminated)

    def phases(self, now: float) -> Mapping[str, float]:
        """Return the seconds of each phase that has begun, for a set-up that ends now."""
        if self.scheduled_at is None:
            return {"schedule": now - self.began}
        result = {"schedule": self.scheduled_at - self.began}
        clone = self.clone_seconds
        if clone is None and self.clone_started_at is not None:
            clone = now - self.clone_started_at
        if clone is not None:
            result["clone"] = clone
        result["pull"] = max(0.0, now - self.scheduled_at - (clone or 0.0))
        return result


def duration(terminated: Object) -> float:
    """Return the seconds between start and finish of a terminated container; 0 if the status lacks a time."""
    began, ended = parse_timestamp(terminated.get("startedAt")), parse_timestamp(terminated.get("finishedAt"))
    return max(0.0, (ended - began).total_seconds()) if began and ended else 0.0
