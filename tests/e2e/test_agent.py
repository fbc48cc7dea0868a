"""The agent as a process: how it starts without a scheduler, handles signals and wrong settings, and serves HTTP."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from agent.cluster.capabilities import LOOK_AFTER_RESIZE_SINCE
from agent.cluster.ending.plan import MAX_NUDGES
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, Agent, Lab, start_scheduler, until
from tests.e2e.observer import remains

if TYPE_CHECKING:
    from pathlib import Path


def metric(text: str, name: str, **labels: str) -> float:
    """Return the value of the sample with this name and these labels in the text of an agent's metrics."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"no {name} {labels}")


def end_counts(agent: Agent) -> tuple[str, int, int]:
    """Return three fields of the last line of the agent's log.

    The fields are the event name, the number of finished sessions, and the number of sessions that the agent has handed
    over to other agents.
    """
    line = json.loads(agent.log.splitlines()[-1])
    return line["event"], line["finished"], line["handed_over"]


def test_without_a_scheduler_the_agent_logs_it_once_and_becomes_ready_later(own_lab: Lab, tmp_path: Path) -> None:
    address = own_lab.address
    own_lab.scheduler.terminate()
    own_lab.scheduler.wait(10)
    agent = Agent(own_lab, 0, {"scheduler": {"reconnect_max": "1s"}})
    own_lab.agents.append(agent)
    until(lambda: "cannot reach the scheduler" in agent.log, "the agent did not log that it cannot reach the scheduler")
    until(
        lambda: metric(agent.get("/metrics")[1], "sealci_agent_stream_reconnects_total", reason="unavailable") > 3, ""
    )
    assert agent.log.count("cannot reach the scheduler") == 1
    assert agent.get("/livez") == (200, "ok\n")
    code, why = agent.get("/readyz")
    assert (code, why) == (503, "not registered with the scheduler\n")
    own_lab.scheduler, _ = start_scheduler(tmp_path, address)
    agent.until_ready()
    assert agent.get("/livez")[0] == 200
    assert own_lab.one(BUSYBOX, "echo hello").text == "hello\n"


def test_an_idle_agent_stops_at_once_and_is_deregistered(own_lab: Lab, tmp_path: Path) -> None:
    agent = own_lab.agent()
    began = time.monotonic()
    agent.process.terminate()
    assert agent.process.wait(10) == 0
    print(f"\n  idle agent gone after {time.monotonic() - began:.2f} s")
    until(lambda: "agent disconnected" in (tmp_path / "scheduler.log").read_text(), "the scheduler did not notice")
    assert '"event": "left"' in agent.log


def test_an_agent_that_never_registered_stops_too(own_lab: Lab) -> None:
    own_lab.scheduler.terminate()
    own_lab.scheduler.wait(10)
    agent = Agent(own_lab, 0, {})
    own_lab.agents.append(agent)
    until(lambda: "cannot reach the scheduler" in agent.log, "the agent did not log that it cannot reach the scheduler")
    agent.process.terminate()
    assert agent.process.wait(10) == 0
    assert '"event": "left"' in agent.log


def test_sigterm_lets_running_actions_end(own_lab: Lab) -> None:
    agent = own_lab.agent()
    submission = own_lab.start({"a": {"image": BUSYBOX, "commands": ["echo begun; sleep 4; echo done"]}})
    submission.until_running("a", "begun")
    agent.process.terminate()
    assert submission.wait()["a"].outcome == ("succeeded", None, 0)
    assert agent.process.wait(30) == 0
    assert end_counts(agent) == ("left", 1, 0)


def test_a_second_sigterm_cancels_running_actions_and_deletes_their_pods(own_lab: Lab) -> None:
    agent = own_lab.agent()
    submission = own_lab.start({"a": {"image": BUSYBOX, "commands": ["echo begun; sleep 600"]}})
    submission.until_running("a", "begun")
    agent.process.terminate()
    until(lambda: '"event": "draining"' in agent.log, "the agent does not drain")
    agent.process.terminate()
    assert submission.wait()["a"].outcome[:2] == ("cancelled", "CANCELLED")
    assert agent.process.wait(30) == 0
    assert not remains(own_lab.namespace)
    assert end_counts(agent) == ("left", 1, 0)


def test_wrong_settings_are_refused_with_their_key() -> None:
    for variable, value, says in (
        ("SEALCI_AGENT__SLOTS", "many", "agent.slots"),
        ("SEALCI_AGENT__SLTS", "3", "SEALCI_AGENT__SLTS"),
        ("SEALCI_POLICY__DEFAULT_TIMEOUT", "soon", "policy.default_timeout"),
    ):
        done = subprocess.run(
            [*COMMAND, "serve"],
            env=kube.environment() | {variable: value},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 2
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_a_wrong_settings_file_is_refused_with_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("agent: {slots: 0, pol: x}\npolicy: {max_memory: lots}\n")
    done = subprocess.run(
        [*COMMAND, "serve", "--config", str(file)],
        env=kube.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    for key in ("agent.slots", "agent.pol", "policy.max_memory"):
        assert key in done.stderr
    assert "Traceback" not in done.stderr


def test_metrics_parse_and_move(own_lab: Lab) -> None:
    agent = own_lab.agent()
    before = agent.get("/metrics")[1]
    assert metric(before, "sealci_agent_slots") == 20
    assert metric(before, "sealci_agent_stream_connected") == 1
    completed = "sealci_agent_actions_completed_total"
    assert metric(before, completed, result="succeeded", stage="artifacts") == 0
    own_lab.run(
        {
            "good": {"image": BUSYBOX, "commands": ["echo x > f"]},
            "bad": {"image": BUSYBOX, "commands": ["false"], "artifacts": "none"},
        }
    )
    until(lambda: metric(agent.get("/metrics")[1], "sealci_agent_slots_used") == 0, "a slot is still in use")
    after = agent.get("/metrics")[1]
    assert metric(after, completed, result="succeeded", stage="artifacts") == 1
    assert metric(after, completed, result="failed", reason="COMMAND_FAILED", stage="commands") == 1
    assert metric(after, "sealci_agent_artifact_files_total") == 1
    assert metric(after, "sealci_agent_k8s_requests_total", verb="create", resource="pods", code="2xx") == 2
    # A pod whose phase is final is removed by a second request.
    assert 2 <= metric(after, "sealci_agent_k8s_requests_total", verb="delete", resource="pods", code="2xx") <= 4
    assert metric(after, "sealci_agent_k8s_requests_total", verb="get", resource="pods/log", code="2xx") == 2
    nudges = metric(after, "sealci_agent_k8s_requests_total", verb="patch", resource="pods/resize", code="2xx")
    assert (2 if kube.version() >= LOOK_AFTER_RESIZE_SINCE else 0) <= nudges <= 2 * MAX_NUDGES
    assert metric(after, "sealci_agent_kubelet_nudges_total", result="refused") == 0
    assert metric(after, "sealci_agent_environments") == 0
