"""What caches change in the pod of an action."""

from __future__ import annotations

from typing import Any

import pytest

from agent.cluster.pod import action_order, manifest
from agent.cluster.pod.services.gate import start_gate
from agent.cluster.warm.shape import ineligible
from agent.domain.actions import Action, ArtifactRules, Cache, CacheScope, Key, Service, When
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


@pytest.mark.parametrize(
    ("changed", "policy", "mounted"),
    [
        ({}, "read-write", [False]),
        ({}, "read", [True]),
        ({}, "off", []),
        ({"cache_scope": None}, "read-write", []),
        ({"caches": ()}, "read-write", []),
    ],
)
def test_only_the_helper_mounts_the_claim(changed: dict[str, Any], policy: str, mounted: list[bool]) -> None:
    caches = {"store": "claim", "claim": "ci-caches", "sign_key_file": "/key"}
    settings = Settings.model_validate({"caches": caches, "policy": {"cache": policy}})
    fields = {"caches": CACHES, "cache_scope": CacheScope("main", ("main",)), "services": (Service("db", "i"),)}
    spec = manifest.pod(plan(**fields | changed), settings)["spec"]
    containers = [*spec["containers"], *spec.get("initContainers", ())]
    found = [(each["name"], mount) for each in containers for mount in each.get("volumeMounts", ())]
    mounts = [(name, mount["readOnly"]) for name, mount in found if mount["name"] == "caches"]
    assert mounts == [("helper", each) for each in mounted]
    claims = [each["persistentVolumeClaim"] for each in spec["volumes"] if "persistentVolumeClaim" in each]
    assert claims == [{"claimName": "ci-caches"}] * len(mounted)


@pytest.mark.parametrize(
    "caches", [{"store": "claim"}, {"claim": "x"}, {"store": "claim", "claim": "X", "sign_key_file": "k"}]
)
def test_a_claim_needs_its_name_and_a_key(caches: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"sign_key_file: must|claim: must|should match pattern"):
        Settings.model_validate({"caches": caches})


def test_an_action_with_caches_begins_in_no_warm_pod() -> None:
    assert ineligible(plan(caches=CACHES), SETTINGS) == "cold_caches"
    assert ineligible(plan(), SETTINGS) == ""
