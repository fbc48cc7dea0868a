"""Which actions fit a warm pod, and what the claim of a warm pod changes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from agent.cluster.pod import action_order, manifest
from agent.cluster.pod.action_order import order_variables
from agent.cluster.pod.labels import ACTION as ACTION_LABEL
from agent.cluster.pod.labels import CLASS, SESSION, WARM
from agent.cluster.pod.session_annotation import claimed_at_of
from agent.cluster.warm import shape
from agent.domain.actions import Action, ArtifactRules, Key, Repository, Resources, Service, When
from agent.settings import Settings
from tests.fakes.warm_agent import ACTION, settings_of

NOW = datetime(2026, 11, 24, 9, tzinfo=UTC)
SETTINGS = settings_of()


def plan_of(action: Action = ACTION, **changes: Any) -> manifest.Plan:
    return manifest.Plan(action, "sealci-build", "ci", "uid-a.1", "5ea1c15ea1c15ea1", 60.0, log_key=7, **changes)


def key_of(action: Action, settings: Settings = SETTINGS, **changes: Any) -> str:
    return shape.pool_key(plan_of(action, **changes), settings)


def test_what_belongs_to_one_action_does_not_change_the_pool() -> None:
    other = Action(
        Key("other", 3, 2),
        ACTION.image,
        ("test",),
        env={"X": "y"},
        timeout=5.0,
        artifacts=ArtifactRules(when=When.NEVER),
        pipefail=True,
        resources=Resources(cpu=SETTINGS.policy.default_cpu),
    )
    assert key_of(other) == key_of(ACTION)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "debian:12"},
        {"resources": Resources(cpu="2")},
        {"resources": Resources(memory="1Gi")},
        {"resources": Resources(ephemeral_storage="1Gi")},
    ],
)
def test_an_action_with_another_image_or_other_resources_gets_another_pool(change: dict[str, Any]) -> None:
    assert key_of(replace(ACTION, **change)) != key_of(ACTION)


@pytest.mark.parametrize(
    "change",
    [
        {"repository": Repository("https://example.org/r.git")},
        {"services": (Service("db", "postgres"),)},
        {"env": {"UID": "1"}},
        {"secrets": {"PPID": "1"}},
    ],
)
def test_whatever_an_action_needs_in_its_pod_changes_the_key(change: dict[str, Any]) -> None:
    # So a new field of the contract that changes the pod can never be lost in a warm pod.
    assert key_of(replace(ACTION, **change)) != key_of(ACTION)


def test_the_pods_of_a_pool_have_the_key_of_the_actions_that_they_fit() -> None:
    assert shape.pool_key(shape.idle_plan(plan_of(), SETTINGS), SETTINGS) == key_of(ACTION)


@pytest.mark.parametrize(
    "environment",
    [
        {"profile": "restricted"},
        {"image_pull_policy": "Always"},
        {"image": "agent:2"},
        {"workspace": "/w"},
        {"workspace_limit": "1Gi"},
        {"helper_resources": {"limits": {"memory": "1Gi"}}},
        {"pod_template": {"spec": {"runtimeClassName": "gvisor"}}},
        {"pod_template": {"spec": {"imagePullSecrets": [{"name": "x"}]}}},
        {"pod_template": {"spec": {"serviceAccountName": "x"}}},
    ],
)
def test_every_setting_that_shapes_a_pod_is_part_of_the_key(environment: dict[str, Any]) -> None:
    warm = {"learn": {"max_pods": 1}}
    assert key_of(ACTION, settings_of(environment=environment, warm=warm)) != key_of(ACTION)
    assert key_of(ACTION, user_namespace=True) != key_of(ACTION)


def test_two_classes_never_share_a_pool_even_if_their_pods_have_one_shape() -> None:
    settings = settings_of(environment={"classes": {"one": {}, "two": {}}})
    keys = {key_of(replace(ACTION, environment_class=name), settings) for name in ("", "one", "two")}
    assert len(keys) == 3


def test_a_warm_pod_of_a_class_has_the_class_in_its_label_and_fits_the_class() -> None:
    plan = plan_of(replace(ACTION, environment_class="one"))
    idle = shape.idle_plan(plan, SETTINGS, "sealci-warm-1")
    assert shape.idle_pod(idle, SETTINGS, "key")["metadata"]["labels"][CLASS] == "one"
    assert shape.pool_key(idle, SETTINGS) == shape.pool_key(plan, SETTINGS)


def test_a_pod_that_evicts_others_takes_no_room_of_warm_pods() -> None:
    conditions = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]
    assert shape.unschedulable({"status": {"conditions": conditions}}) == "0/1 nodes are available"
    assert shape.unschedulable({"status": {"conditions": conditions, "nominatedNodeName": "node"}}) == ""


def test_a_warm_pod_holds_nothing_of_an_action() -> None:
    body = shape.idle_pod(shape.idle_plan(plan_of(), SETTINGS, "sealci-warm-1"), SETTINGS, "key")
    text = json.dumps(body)
    for part in ("make", "hunter2", "TOKEN", ACTION.key.action_id + '"', "5ea1c15ea1c15ea1"):
        assert part not in text
    meta = body["metadata"]
    assert meta["labels"][WARM] == "key"
    assert SESSION not in meta["annotations"]
    assert ACTION_LABEL not in meta["labels"]
    assert meta["annotations"][manifest.SAFE_TO_EVICT] == "true"
    # The order, with the values of secrets, gets into a volume in memory.
    (order,) = (each for each in body["spec"]["volumes"] if each["name"] == "order")
    assert order["emptyDir"]["medium"] == "Memory"
    # It has the shape of the action's own pod, apart from the variables of container `helper` and the deadline.
    own = manifest.pod(plan_of(), SETTINGS)
    for pod in (own, body):
        del pod["spec"]["activeDeadlineSeconds"]
        del pod["spec"]["containers"][0]["env"]
    assert body["spec"] == own["spec"]


def test_the_order_is_that_of_a_cold_pod_with_the_values_of_the_secrets() -> None:
    secrets = {"TOKEN": "hunter2-hunter2", "SHELLOPTS": "xtrace"}
    plan = plan_of(replace(ACTION, secrets=secrets))
    order = json.loads(shape.order_of(plan, SETTINGS))
    assert order["env"]["TOKEN"] == "hunter2-hunter2"
    assert (order["shell_options"], order["secrets"]) == ("xtrace", [])
    cold = order_variables(plan, SETTINGS)
    cold_order = json.loads("".join(each["value"] for each in cold if "value" in each).replace("$$", "$"))
    assert {**order, "env": 0, "secrets": 0, "shell_options": 0} == {
        **cold_order,
        "env": 0,
        "secrets": 0,
        "shell_options": 0,
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, ""),
        ({"services": (Service("db", "postgres"),)}, "cold_services"),
        ({"repository": Repository("https://example.org/r.git")}, "cold_repository"),
        ({"env": {"UID": "1"}}, "cold_variable"),
        ({"secrets": {"PPID": "1"}}, "cold_variable"),
        ({"commands": ("x" * (1 << 20),)}, "cold_size"),
    ],
)
def test_an_action_that_a_warm_pod_cannot_run_gets_a_pod_of_its_own(change: dict[str, Any], why: str) -> None:
    assert shape.ineligible(plan_of(replace(ACTION, **change)), SETTINGS) == why


def test_a_tag_that_may_move_gets_a_warm_pod_only_if_the_settings_say_so() -> None:
    moving = settings_of(environment={"image_pull_policy": "Always"}, warm={"learn": {"max_pods": 1}})
    assert shape.ineligible(plan_of(), moving) == "cold_image"
    digest = replace(ACTION, image=f"debian@sha256:{'0' * 64}")
    assert shape.ineligible(plan_of(digest), moving) == ""
    stale = settings_of(
        environment={"image_pull_policy": "Always"}, warm={"learn": {"max_pods": 1}, "stale_tags": "5m"}
    )
    assert shape.ineligible(plan_of(), stale) == ""


def test_a_claim_makes_an_ordinary_pod_and_only_lowers_the_deadline() -> None:
    plan = plan_of()
    created = shape.idle_pod(shape.idle_plan(plan, SETTINGS, "sealci-warm-1"), SETTINGS, "key")
    seen = {"metadata": {"resourceVersion": "7"}, "spec": {}, "status": {"startTime": "2026-11-24T08:50:00Z"}}
    body = shape.claim_patch(seen, created, plan, SETTINGS, NOW)
    assert body["metadata"]["resourceVersion"] == "7"
    assert body["metadata"]["labels"][WARM] is None
    own = manifest.metadata(plan, SETTINGS)
    assert own["labels"].items() >= {n: v for n, v in body["metadata"]["labels"].items() if v is not None}.items()
    assert body["metadata"]["annotations"][manifest.SAFE_TO_EVICT] == "false"
    assert claimed_at_of(body) == NOW
    assert "hunter2" not in json.dumps(body)
    # The pod has waited for ten minutes, and Kubernetes counts from its start.
    assert body["spec"]["activeDeadlineSeconds"] == 600 + action_order.deadline(plan, SETTINGS)
    created["spec"]["activeDeadlineSeconds"] = 5
    assert "spec" not in shape.claim_patch(seen, created, plan, SETTINGS, NOW)
