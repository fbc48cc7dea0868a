"""The API fails and does not recover. Every wait of the agent ends, and the agent reports DEGRADED meanwhile."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from agent.cluster.environment import environment
from agent.cluster.environment.context import EnvironmentTimings
from agent.cluster.logs.source import Timings
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.waiting import LONG
from tests.faults.api_case import VERBS, ApiCase
from tests.faults.test_api_matrix import short_waits

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["short_waits"]

EVER = 1_000_000
QUOTA = "exceeded quota: team"


def case_of(folder: Path, verb: str, fault: str) -> ApiCase:
    """Return a case in which every request of the kind `verb` meets the fault `fault`."""
    case = ApiCase(folder, verb)
    case.faults.put(fault, VERBS[verb].verb, VERBS[verb].part, EVER)
    return case


@pytest.mark.parametrize(
    ("verb", "fault", "reason", "sentence"),
    [
        ("create pod", "403 quota", "QUOTA_EXCEEDED", QUOTA),
        ("create pod", "503", "CLUSTER_UNAVAILABLE", "apiserver is shutting down"),
        ("create pod", "429", "CLUSTER_UNAVAILABLE", "too many requests"),
        ("create pod", "slow", "CLUSTER_UNAVAILABLE", "no answer in time"),
        ("create secret", "403 quota", "QUOTA_EXCEEDED", QUOTA),
        ("create secret", "500", "CLUSTER_UNAVAILABLE", "etcdserver: request timed out"),
        ("exec", "503", "ARTIFACTS_FAILED", "HTTP 503"),
        ("list events", "503", "IMAGE_PULL_FAILED", "InvalidImageName"),
    ],
)
async def test_a_request_that_always_fails_ends_the_action_with_its_reason(
    verb: str, fault: str, reason: str, sentence: str, tmp_path: Path
) -> None:
    case = case_of(tmp_path, verb, fault)
    short = EnvironmentTimings(secret_retry_seconds=1.0, events_retry_seconds=0.5)
    case.timings = replace(case.timings, environment=short)
    case.more["policy"]["pending_timeout"] = 1.0
    async with case.living() as app:
        await case.begin_action(app)
        outcome = await case.end_action(app)
        case.check(app, outcome)
    assert wire.Reason.Name(outcome.reason) == reason
    assert sentence in outcome.message
    assert len(case.tries()) > 1
    if fault == "403 quota":
        waited = [
            event.stage.detail for event in case.events() if event.HasField("stage") and QUOTA in event.stage.detail
        ]
        assert waited, "no event names what the action waits for"


async def test_a_forbidden_log_is_reported_and_does_not_change_the_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "Timings", partial(Timings, refused=0.3))
    case = case_of(tmp_path, "log", "403 right")
    async with case.living() as app:
        await case.begin_action(app)
        outcome = await case.end_action(app)
    assert (outcome.result, outcome.exit_code) == (wire.SUCCEEDED, 0)
    assert "cannot do this" in case.words
    assert case.log == b""


async def test_a_pod_that_may_not_be_deleted_is_counted_and_swept_later(tmp_path: Path) -> None:
    case = case_of(tmp_path, "delete pod", "403 right")
    async with case.living() as app:
        await case.begin_action(app)
        outcome = await case.outcome()
        assert outcome.result == wire.SUCCEEDED
        await app.sessions.idle()
        assert len(case.api.pods) == 1
        assert app.metrics.registry.get_sample_value("sealci_agent_cleanup_failures_total")
        case.faults.lift()
        await case.api.until("every pod is deleted", lambda: not case.api.pods, LONG)


@pytest.mark.parametrize(
    ("verb", "fault", "why"),
    [
        ("list pods", "403 right", "the watch of pods fails: list pods: is forbidden"),
        ("watch pods", "403 right", "the watch of pods fails: watch pods: is forbidden"),
        ("list pods", "503", "the watch of pods fails: list pods: apiserver is shutting down"),
        ("patch lease", "403 right", "the agent's Lease could not be renewed"),
        ("patch lease", "slow", "the cluster does not answer"),
        ("version", "503", "the cluster has not answered yet"),
    ],
)
async def test_the_agent_reports_degraded_and_the_cause_until_the_fault_ends(
    verb: str, fault: str, why: str, tmp_path: Path
) -> None:
    case = case_of(tmp_path, verb, fault)
    async with case.living() as app:
        await case.scheduler.until(
            f"the agent reports DEGRADED because: {why}",
            lambda: any(
                health.status == wire.Health.DEGRADED and health.message.startswith(why)
                for peer in case.scheduler.peers
                for health in peer.health
            ),
            LONG,
        )
        status, text = await case.get("/readyz")
        assert status == 503
        assert text != "ok\n"
        assert app.metrics.registry.get_sample_value("sealci_agent_degraded") == 1
        case.faults.lift()
        await case.ready()
        assert app.metrics.registry.get_sample_value("sealci_agent_degraded") == 0
        case.scheduler.peer.send(action=translate.action_message(case.action))
        outcome = await case.end_action(app)
        case.check(app, outcome)
        assert outcome.result == wire.SUCCEEDED
