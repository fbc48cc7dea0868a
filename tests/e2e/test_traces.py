"""Traces of a real agent: a collector gets the spans, commands get the trace context, log lines have the trace id."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.e2e.lab import BUSYBOX, Lab, until
from tests.fakes.collector import attributes, collecting

if TYPE_CHECKING:
    pass


def test_the_commands_of_an_action_get_its_trace_context(own_lab: Lab) -> None:
    with collecting() as collector:
        agent = own_lab.agent(traces={"endpoint": collector.url})
        report = own_lab.one(BUSYBOX, "echo $TRACEPARENT", "echo x > made")
        assert report.outcome == ("succeeded", None, 0)
        until(lambda: any(each.name == "action" for each in collector.spans), "the collector receives no span")
        action = collector.named("action")
        version, trace, span, flags = report.text.strip().split("-")
        assert (version, trace, span) == ("00", action.trace_id.hex(), action.span_id.hex())
        assert int(flags, 16) & 1, "not sampled"
        stages = [each.name for each in collector.children(action)]
        assert stages == ["setup", "commands", "artifacts", "cleanup"]
        assert attributes(action)["sealci.outcome"] == "succeeded"
        lines = [json.loads(line) for line in agent.log.splitlines()]
        logged = [each for each in lines if each.get("trace_id") == action.trace_id.hex()]
        assert {"session began", "session ended"} <= {each["event"] for each in logged}
        assert {(each["action"], each["attempt"]) for each in logged} == {(own_lab.action_ids(report)[0], 1)}
