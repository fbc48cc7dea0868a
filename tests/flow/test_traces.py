"""Traces: one span per action and one child span per stage, received by a real collector."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from pydantic import ValidationError

from agent.app.serve import open_traces
from agent.domain.actions import Action, Key, Service
from agent.domain.errors import Reason, SettingsError
from agent.domain.observations import FOR_SERVICES, Exited, Running, SetupFailed, Waiting
from agent.execution.registry import SessionRegistry
from agent.settings import AgentSection, Settings, TracesSettings
from agent.telemetry.metrics import Metrics
from agent.telemetry.otel import OpenTelemetry
from agent.telemetry.traces import Traces
from tests.fakes.cluster import FakeBackend, Script
from tests.fakes.collector import Collector, attributes, collecting
from tests.fakes.sink import RecordingEventSink

if TYPE_CHECKING:
    from collections.abc import Iterator

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


async def life(traces: Traces, script: Script, **fields: Any) -> FakeBackend:
    """Run one action to its end and export its traces. Return the cluster in memory.

    `script` is what the pod does. `fields` are fields of the action.
    """
    backend = FakeBackend()
    backend.script = lambda _: script
    async with asyncio.TaskGroup() as tasks:
        sessions = SessionRegistry(Settings(), backend, RecordingEventSink(), Metrics(), tasks, traces)
        sessions.action(Action(Key("run/build"), "alpine", ("one", "two"), name="build", **fields))
        async with asyncio.timeout(30):
            await sessions.idle()
    await asyncio.to_thread(traces.close)
    return backend


def exporting(collector: Collector) -> OpenTelemetry:
    return OpenTelemetry(TracesSettings(endpoint=collector.url), AgentSection(id="uid", pool="p"), "1.2.3")


async def test_an_action_is_a_span_and_each_stage_a_child_span(collector: Collector) -> None:
    backend = await life(exporting(collector), Script(), traceparent=PARENT)
    action = collector.named("action")
    assert (action.trace_id.hex(), action.parent_span_id.hex()) == tuple(PARENT.split("-")[1:3])
    assert [each.name for each in collector.children(action)] == ["setup", "commands", "artifacts", "cleanup"]
    for before, after in zip(collector.children(action), collector.children(action)[1:], strict=False):
        assert before.end_time_unix_nano <= after.start_time_unix_nano
        assert action.start_time_unix_nano <= before.start_time_unix_nano
        assert after.end_time_unix_nano <= action.end_time_unix_nano
    found = attributes(action)
    assert found["cicd.pipeline.task.run.id"] == "run/build"
    assert (found["cicd.pipeline.task.name"], found["container.image.name"]) == ("build", "alpine")
    assert (found["sealci.outcome"], found["process.exit.code"], found["sealci.adopted"]) == ("succeeded", 0, False)
    assert collector.resources[0]["service.name"] == "sealci-agent"
    assert (collector.resources[0]["service.version"], collector.resources[0]["sealci.pool"]) == ("1.2.3", "p")
    assert collector.paths == {"/v1/traces"}
    # The commands get a trace context whose parent is the action's span, so that spans of the commands become children
    # of the action's span.
    (environment,) = backend.environments.values()
    assert environment.action.traceparent == f"00-{action.trace_id.hex()}-{action.span_id.hex()}-01"


@pytest.mark.parametrize(
    ("end", "stage", "kind", "fault"),
    [
        (Exited(3, 1, Reason.COMMAND_FAILED, "command 1 failed"), "commands", "COMMAND_FAILED", "user"),
        (SetupFailed(Reason.UNSCHEDULABLE, "no node"), "setup", "UNSCHEDULABLE", "infrastructure"),
    ],
)
async def test_a_failure_is_on_the_span_and_on_its_stage(
    collector: Collector, end: Exited | SetupFailed, stage: str, kind: str, fault: str
) -> None:
    script = Script(end=end) if isinstance(end, Exited) else Script(setups=[(end,)])
    await life(exporting(collector), script)
    action = collector.named("action")
    found = attributes(action)
    assert (found["error.type"], found["sealci.fault"], found["sealci.stage"]) == (kind, fault, stage)
    assert action.status.code == collector.named(stage).status.code == Status.STATUS_CODE_ERROR
    assert collector.named("cleanup").status.code == Status.STATUS_CODE_UNSET
    assert not action.parent_span_id


@pytest.mark.parametrize("end", [Running(), SetupFailed(Reason.SERVICE_FAILED, "service db ended")])
async def test_the_wait_for_services_is_a_child_span_that_has_the_failure_of_a_service(
    collector: Collector, end: Running | SetupFailed
) -> None:
    script = Script(setups=[(Waiting(f"{FOR_SERVICES}db: health command"), end)])
    await life(exporting(collector), script, services=(Service("db", "postgres"),))
    action, failed = collector.named("action"), isinstance(end, SetupFailed)
    setup, services, third, *_ = collector.children(action)
    names = (setup.name, services.name, third.name)
    assert names == ("setup", "services", "cleanup" if failed else "commands")
    assert attributes(action)["sealci.services"] == "db"
    expected = Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET
    assert action.status.code == services.status.code == expected


async def test_without_an_endpoint_the_trace_context_is_only_passed_on() -> None:
    assert type(open_traces(Settings())) is Traces
    backend = await life(open_traces(Settings()), Script(), traceparent=PARENT)
    (environment,) = backend.environments.values()
    assert environment.action.traceparent == PARENT


async def test_an_unreachable_collector_delays_no_action() -> None:
    with collecting() as gone:
        pass
    began = time.monotonic()
    backend = await life(exporting(gone), Script())
    print(f"\n  left after {time.monotonic() - began:.1f} s without a collector")
    (environment,) = backend.environments.values()
    assert environment.steps[-1] == "removed"


def test_a_missing_library_or_a_wrong_endpoint_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "agent.telemetry.otel", None)
    with pytest.raises(SettingsError, match=r"traces.endpoint: the extra `otel` is not installed"):
        open_traces(Settings(traces=TracesSettings(endpoint="http://127.0.0.1:4318")))
    with pytest.raises(ValidationError):
        TracesSettings(endpoint="collector:4318")
