"""Actions in a namespace whose LimitRange or ResourceQuota refuses pods or nudges, on a real API server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from agent.cluster.capabilities import LOOK_AFTER_RESIZE_SINCE
from agent.domain.json import Object
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, new_namespace, open_lab, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# This LimitRange allows a container at most 256Mi of memory and requires at least 50m of CPU. The limit of memory must
# be at most four times the request. The agent's own containers violate all three rules by default.
BOUNDS: Object = {
    "type": "Container",
    "max": {"memory": "256Mi"},
    "min": {"cpu": "50m"},
    "default": {"memory": "128Mi"},
    "defaultRequest": {"memory": "64Mi", "cpu": "50m"},
    "maxLimitRequestRatio": {"memory": "4"},
}


def test_the_agent_s_own_containers_fit_themselves_into_a_limit_range(tmp_path: Path) -> None:
    with new_namespace() as namespace:
        limits = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "limits", "namespace": namespace}}
        kube.apply(limits | {"spec": {"limits": [BOUNDS]}})
        with open_lab(namespace, tmp_path) as lab:
            agent = lab.agent()
            report = lab.one(BUSYBOX, "echo ran > f; cat f", resources={"cpu": "100m", "memory": "64Mi"})
            assert report.outcome == ("succeeded", None, 0), report
            # Container `helper` has the minimum of CPU, and a nudge would lower it.
            nudges = kube.version() >= LOOK_AFTER_RESIZE_SINCE
            assert agent.log.count("the API server refuses pods/resize") == nudges
            over = lab.one(BUSYBOX, "echo never", resources={"cpu": "100m", "memory": "300Mi"})
            assert over.outcome == ("failed", "INVALID_CONFIGURATION", None), over
            assert "maximum memory usage per Container is 256Mi" in over.finished["message"]
            assert "change `resources` of the action" in over.finished["message"]


@pytest.mark.parametrize(
    ("hard", "reason", "texts"),
    [
        ({"limits.cpu": "4"}, "INVALID_CONFIGURATION", ["must specify limits.cpu", "set policy.limit_cpu"]),
        ({"requests.memory": "1Mi"}, "QUOTA_EXCEEDED", ["exceeded quota", "requests.memory"]),
    ],
)
def test_a_quota_that_refuses_a_pod_is_named_with_what_to_change(
    tmp_path: Path, hard: dict[str, str], reason: str, texts: list[str]
) -> None:
    with new_namespace() as namespace:
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota", "namespace": namespace}}
        kube.apply(quota | {"spec": {"hard": hard}})
        until(lambda: kube.get("resourcequota", "quota", "-n", namespace)[0].get("status", {}).get("hard"), "no status")
        with open_lab(namespace, tmp_path) as lab:
            lab.agent(policy={"pending_timeout": "3s"})
            report = lab.one(BUSYBOX, "echo never")
    assert report.outcome == ("failed", reason, None), report
    assert all(text in report.finished["message"] for text in texts), report


@contextmanager
def refusing_policy(namespace: str) -> Iterator[None]:
    """Refuse every resize of a pod in the namespace, as an admission webhook may do."""
    group, name = "admissionregistration.k8s.io", f"no-resize-{namespace}"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["pods/resize"]}
    policy = {
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": "false", "message": "no resize in this namespace"}],
    }
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    binding = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": selector},
    }
    kinds = {"ValidatingAdmissionPolicy": policy, "ValidatingAdmissionPolicyBinding": binding}
    objects = [
        {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        for kind, spec in kinds.items()
    ]
    kube.apply(*objects)
    try:
        yield
    finally:
        for kind in kinds:
            kube.kubectl("delete", kind, name)


def test_a_refused_nudge_is_logged_once_and_changes_no_outcome(tmp_path: Path) -> None:
    with new_namespace() as namespace, refusing_policy(namespace), open_lab(namespace, tmp_path) as lab:
        agent = lab.agent()
        # The API server needs some seconds until it applies a new policy.
        for _ in range(5):
            report = lab.one(BUSYBOX, "echo x > f", artifacts={"paths": ["f"]})
            assert (report.outcome, set(report.files)) == (("succeeded", None, 0), {"f"})
            if "no resize in this namespace" in agent.log:
                break
        assert lab.one(BUSYBOX, "exit 3").outcome == ("failed", "COMMAND_FAILED", 3)
        nudges = kube.version() >= LOOK_AFTER_RESIZE_SINCE
        assert agent.log.count("the API server refuses pods/resize") == nudges


def test_nudges_stay_within_a_full_quota_and_a_limit_range(tmp_path: Path) -> None:
    with new_namespace() as namespace:
        head = {"apiVersion": "v1", "metadata": {"name": "limits", "namespace": namespace}}
        # One action with the lab's default requests fills the quota.
        kube.apply(head | {"kind": "ResourceQuota", "spec": {"hard": {"requests.cpu": "15m"}}})
        kube.apply(head | {"kind": "LimitRange", "spec": {"limits": [{"type": "Container", "min": {"cpu": "5m"}}]}})
        with open_lab(namespace, tmp_path) as lab:
            agent = lab.agent()
            for _ in range(2):
                assert lab.one(BUSYBOX, "true", artifacts="none").outcome == ("succeeded", None, 0)
            assert "refuses pods/resize" not in agent.log
