"""Failed answers of the API server: the reason with which the action fails, and whether the agent retries."""

from __future__ import annotations

import json

import pytest

from agent.cluster.api.errors import RULES, Rule, classify_status, failure
from agent.domain.errors import Reason


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.needle or "any message")
def test_each_rule_of_the_table_decides(rule: Rule) -> None:
    statuses = [status for status in range(300, 600) if status in rule.statuses]
    assert statuses
    found = {status: classify_status(status, f"pods: {rule.needle}: no") for status in statuses}
    assert found == dict.fromkeys(statuses, (rule.reason, rule.retryable))


@pytest.mark.parametrize(
    ("status", "message", "reason", "retryable"),
    [
        (400, "unknown field", Reason.INVALID_CONFIGURATION, False),
        (401, "Unauthorized", Reason.CLUSTER_UNAVAILABLE, True),
        (403, 'pods is forbidden: User "x" cannot create resource', Reason.CLUSTER_UNAVAILABLE, False),
        (403, 'pods "x" is forbidden: exceeded quota: q, requested: pods=1', Reason.QUOTA_EXCEEDED, True),
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', Reason.CLUSTER_UNAVAILABLE, False),
        (403, 'admission webhook "w" denied the request: no', Reason.INVALID_CONFIGURATION, False),
        (403, "maximum cpu usage per Container is 1, but limit is 2", Reason.INVALID_CONFIGURATION, False),
        (403, "error looking up service account ci/default: not found", Reason.CLUSTER_UNAVAILABLE, True),
        (404, 'namespaces "ci" not found', Reason.CLUSTER_UNAVAILABLE, False),
        (409, 'pods "x" already exists', Reason.CLUSTER_UNAVAILABLE, False),
        (409, 'object is being deleted: pods "x" already exists', Reason.CLUSTER_UNAVAILABLE, True),
        (410, "too old resource version", Reason.CLUSTER_UNAVAILABLE, False),
        (422, 'Pod "x" is invalid', Reason.INVALID_CONFIGURATION, False),
        (429, "too many requests", Reason.CLUSTER_UNAVAILABLE, True),
        (500, "failed calling webhook: context deadline exceeded", Reason.CLUSTER_UNAVAILABLE, True),
        (503, "", Reason.CLUSTER_UNAVAILABLE, True),
    ],
)
def test_answers_of_real_clusters(status: int, message: str, reason: Reason, retryable: bool) -> None:
    assert classify_status(status, message) == (reason, retryable)


# Answers of the API server of Kubernetes 1.37, word for word: one pod with the containers `action` and `helper` in a
# namespace with one LimitRange or one ResourceQuota.
FORBIDDEN = 'pods "p" is forbidden: '
LIMIT_RANGE = (
    "maximum memory usage per Container is 256Mi, but limit is 512Mi",
    "minimum memory usage per Container is 48Mi, but request is 32Mi",
    "memory max limit to request ratio per Container is 2, but provided ratio is 16.000000",
    "cpu max limit to request ratio per Container is 2, but no limit is specified or limit is 0",
    "maximum memory usage per Pod is 500Mi, but limit is 576Mi",
    "minimum memory usage per Pod is 1Gi, but request is 96Mi",
    "memory max limit to request ratio per Pod is 2, but provided ratio is 6.000000",
    "maximum cpu usage per Pod is 2.  No limit is specified",
    "[minimum memory usage per Pod is 1Gi, but request is 96Mi, "
    "minimum memory usage per Container is 48Mi, but request is 32Mi]",
)


@pytest.mark.parametrize("message", LIMIT_RANGE)
def test_a_refusal_of_a_limit_range_is_a_configuration_error_that_names_what_to_change(message: str) -> None:
    error = failure("create", "pods", 403, {}, json.dumps({"message": FORBIDDEN + message}))
    assert (error.reason, error.retryable) == (Reason.INVALID_CONFIGURATION, False)
    assert message in error.message
    for name in ("LimitRange", "resources", "policy.default_", "environment.helper_resources"):
        assert name in error.message


def test_a_quota_that_wants_a_limit_is_a_configuration_error_that_names_what_to_change() -> None:
    text = "failed quota: bound: must specify limits.cpu for: action,files"
    error = failure("create", "pods", 403, {}, json.dumps({"message": FORBIDDEN + text}))
    assert (error.reason, error.retryable) == (Reason.INVALID_CONFIGURATION, False)
    for name in (text, "policy.limit_cpu", "environment.helper_resources"):
        assert name in error.message


@pytest.mark.parametrize(
    "message",
    [
        "exceeded quota: bound, requested: requests.memory=96Mi, used: requests.memory=0, "
        "limited: requests.memory=64Mi",
        "exceeded quota: bound, requested: pods=1, used: pods=0, limited: pods=0",
    ],
)
def test_a_full_quota_is_retried(message: str) -> None:
    assert classify_status(403, FORBIDDEN + message) == (Reason.QUOTA_EXCEEDED, True)


@pytest.mark.parametrize("limit", ["64Mi", "16Mi"])
def test_a_request_over_the_default_limit_of_a_limit_range(limit: str) -> None:
    text = (
        'Pod "p" is invalid: spec.containers[1].resources.requests: Invalid value: "128Mi": '
        f"must be less than or equal to memory limit of {limit}"
    )
    error = failure("create", "pods", 422, {}, json.dumps({"message": text}))
    assert (error.reason, error.retryable) == (Reason.INVALID_CONFIGURATION, False)
    assert "LimitRange" in error.message


def test_a_missing_right_is_not_a_limit_of_the_namespace() -> None:
    text = 'pods is forbidden: User "maximum cpu" cannot create resource "pods"'
    assert classify_status(403, text)[0] is Reason.CLUSTER_UNAVAILABLE
