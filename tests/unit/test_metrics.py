"""The series: named as they are documented, complete from the first scrape, without unbounded labels."""

from __future__ import annotations

import itertools

from prometheus_client.parser import text_string_to_metric_families

from agent.actions import Result
from agent.errors import Reason, Rejection, Stage
from agent.metrics import CODES, REQUESTS, Metrics


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    found = itertools.chain.from_iterable(family.samples for family in families)
    return {(each.name, frozenset(each.labels.items())): each.value for each in found}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"sealci_agent_{name}", frozenset(labels.items())]


def test_every_series_exists_before_anything_happens() -> None:
    found = {(name.removeprefix("sealci_agent_"), labels) for name, labels in samples(Metrics("1.2.3"))}

    def exists(name: str, **labels: str) -> bool:
        return (name, frozenset(labels.items())) in found

    assert all(exists("actions_rejected_total", reason=why.value) for why in Rejection)
    for stage in Stage:
        assert exists("actions_completed_total", result="succeeded", stage=stage.value, reason="")
        for reason in Reason:
            result = Result.CANCELLED if reason is Reason.CANCELLED else Result.FAILED
            assert exists("actions_completed_total", result=result.value, stage=stage.value, reason=reason.value)
    for (verb, resource), code in itertools.product(REQUESTS, CODES):
        assert exists("k8s_requests_total", verb=verb, resource=resource, code=code)


def test_counting_adds_no_series() -> None:
    metrics = Metrics()
    before = samples(metrics).keys()
    metrics.actions_completed.labels("failed", "setup", "EVICTED").inc()
    metrics.action_duration.labels("failed").observe(3)
    metrics.requests.labels("create", "pods", "5xx").inc()
    metrics.internal_errors.labels("session").inc()
    assert samples(metrics).keys() == before
    assert value(metrics, "actions_completed_total", result="failed", stage="setup", reason="EVICTED") == 1


def test_everything_is_named_by_what_it_belongs_to() -> None:
    names = {name for name, _ in samples(Metrics())}
    assert all(name.startswith(("sealci_agent_", "process_")) for name in names)
    assert not [name for name in names if name.endswith("_created")]


def test_two_agents_in_one_process_count_apart() -> None:
    one, two = Metrics(), Metrics()
    one.actions_received.inc()
    assert (value(one, "actions_received_total"), value(two, "actions_received_total")) == (1, 0)
