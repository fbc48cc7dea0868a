"""After a LimitRange has refused a pod, the agent changes the resources of its own containers until they fit.

The agent never changes the resources of container `action`, which the author of the action chose.
"""

from __future__ import annotations

from typing import Any

import pytest

from agent.cluster.pod.resources import fit_helpers

HELPER = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}}
CLONE = {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "1Gi"}}


def pod(action: dict[str, Any]) -> dict[str, Any]:
    return {
        "spec": {
            "initContainers": [{"name": "repository", "resources": CLONE}],
            "containers": [{"name": "helper", "resources": HELPER}, {"name": "action", "resources": action}],
        }
    }


def resources(body: dict[str, Any] | None) -> dict[str, Any]:
    assert body is not None
    found = (*body["spec"]["initContainers"], *body["spec"]["containers"])
    return {each["name"]: each["resources"] for each in found}


SMALL = {"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}}


def test_a_limit_over_the_maximum_of_a_container_is_lowered() -> None:
    message = 'pods "p" is forbidden: maximum memory usage per Container is 256Mi, but limit is 512Mi (HTTP 403)'
    before = pod(SMALL)
    found = resources(fit_helpers(before, message))
    assert found == {
        "helper": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "repository": CLONE,
        "action": SMALL,
    }
    assert before == pod(SMALL)


def test_several_violations_are_mended_at_once() -> None:
    message = (
        "[maximum memory usage per Container is 16Mi, but limit is 512Mi, "
        "maximum memory usage per Container is 16Mi, but limit is 1Gi]"
    )
    found = resources(fit_helpers(pod(SMALL), message))
    assert found["helper"] == found["repository"]
    assert found["helper"] == {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "16Mi"}}


def test_a_request_below_the_minimum_of_a_container_is_raised() -> None:
    found = resources(fit_helpers(pod(SMALL), "minimum cpu usage per Container is 50m, but request is 10m"))
    assert found["helper"]["requests"] == {"cpu": "50m", "memory": "32Mi"}
    found = resources(fit_helpers(pod(SMALL), "minimum memory usage per Container is 2Gi, but request is 32Mi"))
    assert found["helper"] == {"requests": {"cpu": "10m", "memory": "2Gi"}, "limits": {"memory": "2Gi"}}


def test_a_request_that_is_too_small_for_the_ratio_is_raised() -> None:
    message = "memory max limit to request ratio per Container is 2, but provided ratio is 16.000000"
    found = resources(fit_helpers(pod(SMALL), message))
    assert found["helper"]["requests"]["memory"] == str(256 << 20)
    assert found["repository"] == CLONE


@pytest.mark.parametrize(
    "message",
    [
        # This message refuses container `action`, whose limit is 64Mi, and not a container of the agent.
        "maximum memory usage per Container is 32Mi, but limit is 64Mi",
        "minimum memory usage per Container is 128Mi, but request is 64Mi",
        "maximum memory usage per Pod is 500Mi, but limit is 576Mi",
        "exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0",
        "maximum memory usage per Container is lots, but limit is 512Mi",
        "memory max limit to request ratio per Container is 0, but provided ratio is 16.000000",
        "maximum example.com/gpu usage per Container is 1, but limit is 2",
        "",
    ],
)
def test_a_refusal_for_another_cause_changes_nothing(message: str) -> None:
    assert fit_helpers(pod(SMALL), message) is None


def test_the_mended_pod_differs_in_each_round() -> None:
    message = "maximum memory usage per Container is 256Mi, but limit is 512Mi"
    mended = fit_helpers(pod(SMALL), message)
    assert mended is not None
    assert fit_helpers(mended, message) is None
