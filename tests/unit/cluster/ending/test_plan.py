"""The plan of nudges: how often, when, how large, and which answers of the API server end them."""

from __future__ import annotations

import pytest

from agent.cluster.ending.plan import (
    DELETION_PAUSES,
    END_PAUSES,
    FLOOR_MILLICORES,
    KEPT_NUDGES,
    MAX_CHANGING_PODS,
    MAX_NUDGES,
    NudgePlan,
    helper_millicores,
    is_busy,
    is_refusal,
    resize,
)
from agent.cluster.pod.manifest import HELPER
from agent.domain.json import Object
from agent.settings import Settings


def pod_with(cpu: str | None, **status: str) -> Object:
    requests = {} if cpu is None else {"cpu": cpu}
    helper = {"name": HELPER, "resources": {"requests": requests}}
    return {"spec": {"containers": [{"name": "sidecar"}, helper]}, "status": status}


def test_nudges_lower_the_request_step_by_step_and_one_is_kept_for_the_deletion() -> None:
    plan = NudgePlan(10)
    assert plan.pauses(deleting=False) == END_PAUSES[: MAX_NUDGES - KEPT_NUDGES]
    assert [plan.take() for _ in plan.pauses(deleting=False)] == [9, 8, 7, 6]
    assert plan.pauses(deleting=False) == ()
    assert plan.pauses(deleting=True) == DELETION_PAUSES[:KEPT_NUDGES]
    assert plan.take() == 5
    assert (plan.possible, plan.pauses(deleting=True)) == (False, ())


@pytest.mark.parametrize(
    ("millicores", "nudges"), [(0, 0), (1, 0), (FLOOR_MILLICORES, 0), (FLOOR_MILLICORES + 1, 1), (1000, 4)]
)
def test_a_small_request_allows_few_nudges_or_none(millicores: int, nudges: int) -> None:
    plan = NudgePlan(millicores)
    assert len(plan.pauses(deleting=False)) == nudges
    assert plan.possible == (nudges > 0)


def test_the_default_request_of_the_helper_has_room_for_all_nudges() -> None:
    cpu = Settings().environment.helper_resources["requests"]["cpu"]
    assert helper_millicores(pod_with(cpu)) >= FLOOR_MILLICORES + MAX_NUDGES


def test_the_pauses_grow_and_end_within_a_second() -> None:
    assert list(END_PAUSES) == sorted(END_PAUSES)
    assert sum(END_PAUSES) <= 1.0


@pytest.mark.parametrize(
    ("pod", "millicores"),
    [
        (pod_with("10m"), 10),
        (pod_with("1"), 1000),
        (pod_with("0.0105"), 10),
        (pod_with(None), 0),
        (pod_with("1e-2"), 0),
        (pod_with("10m", qosClass="Burstable"), 10),
        (pod_with("10m", qosClass="Guaranteed"), 0),
        ({"spec": {"containers": [{"name": "files"}]}}, 0),
        ({}, 0),
    ],
)
def test_the_present_request_is_read_from_the_pod(pod: Object, millicores: int) -> None:
    assert helper_millicores(pod) == millicores


def test_a_nudge_names_the_pod_by_its_uid_and_changes_one_container() -> None:
    assert resize("u-1", 9) == {
        "metadata": {"uid": "u-1"},
        "spec": {"containers": [{"name": "helper", "resources": {"requests": {"cpu": "9m"}}}]},
    }


@pytest.mark.parametrize(
    ("status", "message", "refused"),
    [
        (403, 'pods "p" is forbidden: User "a" cannot patch resource "pods/resize"', True),
        (404, "the server could not find the requested resource", True),
        (404, 'pods "p" not found', False),
        (405, "the server does not allow this method on the requested resource", True),
        (422, 'Pod "p" is invalid: Pod QOS Class may not change', True),
        (409, "Operation cannot be fulfilled", False),
        (401, "Unauthorized", False),
        (429, "too many requests", False),
        (500, "etcdserver: request timed out", False),
        (0, "no answer in time", False),
    ],
)
def test_only_an_answer_that_will_come_again_is_a_refusal(status: int, message: str, refused: bool) -> None:
    assert is_refusal(status, message, "p") is refused


def test_only_starting_and_ending_pods_of_the_same_node_make_it_busy() -> None:
    def pods(count: int, node: str, state: str) -> list[Object]:
        statuses = [{"name": "action", "state": {state: {}}}]
        return [{"spec": {"nodeName": node}, "status": {"containerStatuses": statuses}}] * count

    others = pods(9, "b", "waiting") + pods(9, "a", "running") + [{"spec": {"nodeName": None}, "status": {}}] * 9
    half = MAX_CHANGING_PODS // 2
    assert not is_busy(others + pods(half, "a", "waiting") + pods(half, "a", "terminated"), "a")
    assert is_busy(others + pods(half, "a", "waiting") + pods(half + 1, "a", "terminated"), "a")
