"""The state of a pod's log, as it follows from the states of the containers."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cluster.environment.containers import PodContainers
from agent.cluster.environment.watch import PodState
from agent.cluster.logs.source import LogState

RUNS: dict[str, Any] = {"running": {}}


@pytest.mark.parametrize(
    ("helper", "action", "expected"),
    [
        ({"waiting": {}}, {"waiting": {}}, LogState.WAITING),
        (RUNS, RUNS, LogState.OPEN),
        (RUNS, {"terminated": {"exitCode": 0}}, LogState.ENDING),
        ({"terminated": {"exitCode": 137}}, RUNS, LogState.ABANDONED),
        # The exit code of a helper that gives up because a service is not ready.
        ({"terminated": {"exitCode": 76}}, RUNS, LogState.UNUSED),
    ],
)
def test_the_state_of_the_log(helper: dict[str, Any], action: dict[str, Any], expected: LogState) -> None:
    state = PodState("p")
    statuses = [{"name": "helper", "state": helper}, {"name": "action", "state": action}]
    state.update({"metadata": {"name": "p"}, "status": {"containerStatuses": statuses}})
    assert PodContainers(state).state is expected


def test_a_pod_that_is_gone_has_no_log() -> None:
    assert PodContainers(PodState("p")).state is LogState.GONE
