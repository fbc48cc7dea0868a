"""What caches change in the pod of an action."""

from __future__ import annotations

from typing import Any

from agent.cluster.pod import action_order, manifest
from agent.cluster.pod.services.gate import start_gate
from agent.cluster.warm.shape import ineligible
from agent.domain.actions import Action, ArtifactRules, Cache, Key, Service, When
from agent.settings import Settings

CACHES = (Cache("k", ("p",)),)
SETTINGS = Settings.model_validate(
    {"caches": {"restore_timeout": 7, "save_timeout": 11}, "artifacts": {"timeout": 100}}
)
NONE = ArtifactRules(when=When.NEVER)


def plan(**fields: Any) -> manifest.Plan:
    action = Action(Key("a"), "i@sha256:1", ("x",), **fields)
    return manifest.Plan(action, "pod", "ci", "agent-1", "0123456789abcdef", timeout=60.0, log_key=1)


def test_the_commands_of_an_action_with_caches_wait_for_the_agent() -> None:
    order = action_order.order(plan(caches=CACHES), SETTINGS)
    assert (order["start"], order["change_owner"]) == (False, True)
    assert action_order.order(plan(), SETTINGS)["start"]
    gate = start_gate(plan(caches=CACHES, services=(Service("db", "i"),)), SETTINGS)
    assert gate is not None
    assert gate["tree"]


def test_the_pod_stays_for_the_caches_and_takes_no_snapshot_for_them() -> None:
    assert plan(caches=CACHES, artifacts=NONE).wants_files
    assert not plan(caches=CACHES, artifacts=NONE).wants_snapshot
    assert not plan(artifacts=NONE).wants_files
    seconds = [action_order.copy_seconds(plan(artifacts=NONE, caches=each), SETTINGS) for each in (CACHES, ())]
    assert seconds == [2 * 100 + 7 + 11, 0]


def test_an_action_with_caches_begins_in_no_warm_pod() -> None:
    assert ineligible(plan(caches=CACHES), SETTINGS) == "cold_caches"
    assert ineligible(plan(), SETTINGS) == ""
