"""The phases of a set-up, from states of the pod and the times at which the agent saw them."""

from __future__ import annotations

import pytest

from agent.cluster.pod.manifest import REPOSITORY
from agent.cluster.pod.setup_timing import SetupTiming
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Running, SetupFailed, Waiting
from agent.telemetry.metrics import Metrics

UNBOUND: Object = {"spec": {}, "status": {}}
BOUND: Object = {"spec": {"nodeName": "n"}, "status": {}}
SPAN = {"startedAt": "2026-01-01T00:00:10Z", "finishedAt": "2026-01-01T00:00:14Z", "exitCode": 0}


def cloning(state: Object) -> Object:
    return {"spec": {"nodeName": "n"}, "status": {"initContainerStatuses": [{"name": REPOSITORY, "state": state}]}}


@pytest.mark.parametrize(
    ("seen", "end", "phases"),
    [
        ([], 7, {"schedule": 7}),
        ([(1, None), (2, UNBOUND)], 5, {"schedule": 5}),
        ([(1, UNBOUND), (3, BOUND), (4, BOUND)], 10, {"schedule": 3, "pull": 7}),
        ([(1, BOUND), (3, cloning({"running": {}})), (8, cloning({"terminated": SPAN}))], 10,
         {"schedule": 1, "clone": 5, "pull": 4}),
        ([(1, BOUND), (8, cloning({"terminated": SPAN}))], 10, {"schedule": 1, "clone": 4, "pull": 5}),
        ([(1, BOUND), (3, cloning({"running": {}}))], 10, {"schedule": 1, "clone": 7, "pull": 2}),
        ([(1, BOUND), (8, cloning({"terminated": {"exitCode": 1}}))], 10, {"schedule": 1, "clone": 0, "pull": 9}),
        ([(9, BOUND), (9, cloning({"terminated": SPAN}))], 10, {"schedule": 9, "clone": 4, "pull": 0}),
    ],
)  # fmt: skip
def test_each_second_belongs_to_one_phase(
    seen: list[tuple[float, Object | None]], end: float, phases: dict[str, float]
) -> None:
    timeline = SetupTiming(0)
    for at, pod in seen:
        timeline.update(pod, at)
    assert timeline.phases(end) == phases


@pytest.mark.parametrize("end", [Running(), SetupFailed(Reason.IMAGE_PULL_FAILED, "no")])
def test_phases_are_recorded_once_at_the_end_of_the_set_up(end: Running | SetupFailed) -> None:
    metrics, timeline = Metrics(), SetupTiming(0)

    def metric(phase: str, what: str = "count") -> float | None:
        return metrics.registry.get_sample_value(f"sealci_agent_phase_duration_seconds_{what}", {"phase": phase})

    timeline.record(metrics, BOUND, Waiting("x"), 2)
    assert metric("schedule") == 0
    for now in (5, 50):
        timeline.record(metrics, BOUND, end, now)
    assert (metric("schedule"), metric("pull"), metric("clone")) == (1, 1, 0)
    assert (metric("schedule", "sum"), metric("pull", "sum")) == (2, 3)
