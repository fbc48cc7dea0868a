"""Actions whose set-up fails. Each gets the right reason and an understandable log, within its time limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, DEBIAN, Lab
from tests.e2e.registry import refusing

if TYPE_CHECKING:
    pass

SETTINGS: dict[str, Any] = {
    "policy": {
        "pull_grace": "4s",
        "registry_grace": "6s",
        "pull_timeout": "20s",
        "pending_timeout": "5s",
        "repository_schemes": ["https", "git"],
        "images": ["localhost/**", "*:*/**", "nowhere.invalid/*"],
        "credentials": {"no-such-secret": ["127.0.0.1"]},
        "max_memory": "2Gi",
        "max_cpu": "1000",
    }
}

MISSING = "localhost/sealci-test/does-not-exist:1"
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # By the name of a case: the action, the stage and reason of its failure, and a text that its log must contain.
    "missing-image": ({"image": MISSING}, "setup", "IMAGE_PULL_FAILED", "Events of the pod"),
    "no-registry": ({"image": "nowhere.invalid/x:1"}, "setup", "IMAGE_PULL_FAILED", "use an image that the nodes have"),
    "unschedulable": (
        {"image": BUSYBOX, "resources": {"cpu": "900"}},
        "setup",
        "UNSCHEDULABLE",
        "Insufficient cpu",
    ),
    "bad-repository": (
        {"image": BUSYBOX, "repo": {"url": "git://127.0.0.1:1/none.git"}},
        "setup",
        "REPOSITORY_FAILED",
        "use a host that the cluster reaches",
    ),
    "forbidden-scheme": (
        {"image": BUSYBOX, "repo": {"url": "http://127.0.0.1/none.git"}},
        "admission",
        "INVALID_CONFIGURATION",
        "repository.url",
    ),
    "missing-credentials": (
        {"image": BUSYBOX, "repo": {"url": "https://127.0.0.1/none.git", "credentials": "no-such-secret"}},
        "setup",
        "REPOSITORY_FAILED",
        "no-such-secret",
    ),
    "long-variable": (
        {"image": BUSYBOX, "env": {"LONG": "x" * 131072}},
        "admission",
        "INVALID_CONFIGURATION",
        "LONG",
    ),
    "image-not-allowed": ({"image": "docker.io/library/alpine"}, "admission", "INVALID_CONFIGURATION", "not allowed"),
    "too-much-memory": (
        {"image": BUSYBOX, "resources": {"memory": "3Gi"}},
        "admission",
        "INVALID_CONFIGURATION",
        "over the maximum of 2Gi",
    ),
    "no-shell": ({"image": "localhost/sealci-test/nosh:1"}, "setup", "INVALID_CONFIGURATION", "/bin/sh"),
    "wrong-processor": ({"image": "localhost/sealci-test/wrongarch:1"}, "setup", "INVALID_CONFIGURATION", ""),
}


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    return SETTINGS


@pytest.fixture(scope="module")
def reports(lab: Lab) -> dict[str, Any]:
    """Run all cases at once."""
    return lab.run({name: {"commands": ["echo never"], **action} for name, (action, *_) in CASES.items()}, timeout=120)


@pytest.mark.parametrize("name", CASES)
def test_a_failed_set_up_has_its_reason_and_log(reports: dict[str, Any], name: str) -> None:
    _, stage, reason, says = CASES[name]
    report = reports[name]
    assert report.finished["outcome"] == "failed", report
    assert report.finished["stage"] == stage, report
    if reason:
        assert report.finished["reason"] == reason, report
    assert report.finished["exit_code"] is None, report
    assert report.commands == []
    assert says in report.text, report
    assert "never" not in report.text.splitlines()


def test_a_registry_that_refuses(lab: Lab) -> None:
    with refusing(401) as registry:
        report = lab.one(f"{registry}/private/image:1", "echo never")
    assert report.outcome == ("failed", "IMAGE_PULL_FAILED", None)
    assert "401" in report.text or "authorization" in report.text, report


def test_no_command_runs_when_the_helper_s_image_cannot_be_pulled(own_lab: Lab) -> None:
    own_lab.agent(environment={"image": MISSING})
    report = own_lab.one(DEBIAN, "echo ran; touch /workspace/ran")
    assert report.outcome == ("failed", "IMAGE_PULL_FAILED", None)
    assert "image of helper" in report.text
    assert "ran" not in report.text.splitlines()


def test_a_user_beyond_the_user_namespace_fails_within_the_grace(own_lab: Lab) -> None:
    beyond = {"spec": {"securityContext": {"runAsUser": 1000650000, "runAsGroup": 0}}}
    own_lab.agent(
        environment={"user_namespaces": "always", "pod_template": beyond},
        policy={"pull_grace": "5s", "pull_timeout": "5m"},
    )
    report = own_lab.one(BUSYBOX, "echo never", timeout=60)
    assert report.outcome == ("failed", "INVALID_CONFIGURATION", None), report.finished
    assert "1000650000" in report.finished["message"]
    assert "FailedCreatePodSandBox" in report.text
