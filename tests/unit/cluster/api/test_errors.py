"""After a failed answer of the API server: the reason with which an action fails, and whether the agent retries."""

from __future__ import annotations

import pytest

from agent.cluster.api.errors import RULES, Rule, classify_status
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
        (403, 'pods "x" is forbidden: violates PodSecurity "restricted:latest"', Reason.INVALID_CONFIGURATION, False),
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
