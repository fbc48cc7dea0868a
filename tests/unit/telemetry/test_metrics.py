"""The metrics: documented, complete at the first scrape, and without unbounded labels."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from agent.domain.errors import Reason, Rejection, Stage
from agent.domain.outcome import Result
from agent.protocol.wire import agent_pb2 as wire
from agent.settings import MetricsSettings
from agent.telemetry.metrics import API_REQUESTS, RESPONSE_CODES, STREAM_MESSAGES, Metrics, fault


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    families = text_string_to_metric_families(metrics.text().decode())
    found = itertools.chain.from_iterable(family.samples for family in families)
    return {(each.name, frozenset(each.labels.items())): each.value for each in found}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics)[f"sealci_agent_{name}", frozenset(labels.items())]


def test_every_series_exists_at_the_first_scrape() -> None:
    found = {(name.removeprefix("sealci_agent_"), labels) for name, labels in samples(Metrics("1.2.3"))}

    def exists(name: str, **labels: str) -> bool:
        return (name, frozenset(labels.items())) in found

    missing = [why.value for why in Rejection if not exists("actions_rejected_total", reason=why.value)]
    assert not missing
    for stage in Stage:
        assert exists("actions_completed_total", result="succeeded", stage=stage.value, reason="", fault="")
        for reason in Reason:
            result = Result.CANCELLED if reason is Reason.CANCELLED else Result.FAILED
            labels = {"result": result.value, "stage": stage.value, "reason": reason.value, "fault": fault(reason)}
            assert exists("actions_completed_total", **labels)
    for (verb, resource), code in itertools.product(API_REQUESTS, RESPONSE_CODES):
        assert exists("k8s_requests_total", verb=verb, resource=resource, code=code)


def test_a_count_adds_no_series() -> None:
    metrics = Metrics()
    before = samples(metrics).keys()
    metrics.actions_completed.labels("failed", "setup", "EVICTED", "infrastructure").inc()
    metrics.action_duration.labels("failed").observe(3)
    metrics.requests.labels("create", "pods", "5xx").inc()
    metrics.internal_errors.labels("session").inc()
    assert samples(metrics).keys() == before
    labels = {"result": "failed", "stage": "setup", "reason": "EVICTED", "fault": "infrastructure"}
    assert value(metrics, "actions_completed_total", **labels) == 1


def test_every_name_has_the_prefix_of_the_agent_or_the_process() -> None:
    names = {name for name, _ in samples(Metrics())}
    assert [name for name in names if not name.startswith(("sealci_agent_", "process_"))] == []
    assert not [name for name in names if name.endswith("_created")]


def test_two_agents_in_one_process_count_separately() -> None:
    one, two = Metrics(), Metrics()
    one.actions_received.inc()
    assert (value(one, "actions_received_total"), value(two, "actions_received_total")) == (1, 0)


def test_each_reason_is_a_fault_of_the_user_or_of_the_infrastructure() -> None:
    assert fault(None) == fault(Reason.CANCELLED) == ""
    assert fault(Reason.COMMAND_FAILED) == fault(Reason.IMAGE_PULL_FAILED) == "user"
    assert fault(Reason.NODE_LOST) == fault(Reason.INTERNAL) == "infrastructure"


def test_the_message_labels_are_the_messages_of_the_protocol() -> None:
    def kinds(message: str) -> set[str]:
        oneof = wire.DESCRIPTOR.message_types_by_name[message].oneofs_by_name["message"]
        return {field.name for field in oneof.fields}

    assert set(STREAM_MESSAGES["sent"]) == kinds("AgentMessage")
    assert set(STREAM_MESSAGES["received"]) == kinds("SchedulerMessage") | {"unknown"}


def test_the_settings_set_the_buckets() -> None:
    metrics = Metrics(settings=MetricsSettings(phase_buckets=(0.5, 4)))
    found = samples(metrics)
    bounds = {dict(labels)["le"] for name, labels in found if name == "sealci_agent_phase_duration_seconds_bucket"}
    assert bounds == {"0.5", "4.0", "+Inf"}


def documented() -> set[tuple[str, str, frozenset[str], str]]:
    """Return the rows of the table in docs/metrics.md as (name, type, labels, help text)."""
    text = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `((?:sealci_agent|process)_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", text, re.MULTILINE)
    return {(name, kind, frozenset(re.findall(r"`(\w+)`", labels)), what) for name, kind, labels, what in rows}


def test_the_documentation_lists_every_metric_and_no_other() -> None:
    found = set()
    for family in text_string_to_metric_families(Metrics().text().decode()):
        labels = frozenset(label for sample in family.samples for label in sample.labels) - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found.add((name, family.type, labels, family.documentation))
    assert documented() == found
