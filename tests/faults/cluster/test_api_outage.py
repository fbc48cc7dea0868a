"""The real API server is stopped for longer than a Lease while actions run.

It is also restarted during the set-up of an action, during the copy of files out of a pod, and during the deletion of a
pod.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent.cluster.pod import labels as labels_module
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.lab import Agent, Lab
    from tests.e2e.submission import Report

pytestmark = pytest.mark.alone
OUTAGE = 40.0
LINES = 70
COUNT = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep 0.8; done; echo made > file"
WHOLE = "".join(f"line {i}\n" for i in range(1, LINES + 1))
# The outage in this test is more than twice as long as a Lease with these settings lasts.
QUICK = {"cluster": {"lease_duration": "15s", "lease_renew": "3s", "request_timeout": "10s"}}
DEGRADED = '"status": "degraded", "why": "the cluster does not answer"'
READY = '"status": "ready"'
ACTIONS = [f"count{number}" for number in range(4)]


@pytest.fixture(autouse=True)
def the_api_server(own_lab: Lab) -> Iterator[None]:
    """Restart the API server and its clients in the cluster after each test, so that they are connected again.

    This happens before the lab closes, which waits until the kubelet has removed all pods.
    """
    yield
    kube.settle()


def metric(agent: Agent, name: str) -> float:
    """Return the value of a metric of an agent."""
    found = [line for line in agent.get("/metrics")[1].splitlines() if line.startswith(f"sealci_agent_{name} ")]
    return float(found[0].rsplit(" ", 1)[1])


def check_first(lab: Lab, report: Report) -> None:
    """Check that the action of a report had one attempt with one pod, and that no agent has adopted the pod."""
    pods = [pod for action_id in lab.action_ids(report) for pod in lab.observer.pods(action_id)]
    labels = [pod["metadata"]["labels"] for pod in pods]
    assert {(each[labels_module.ATTEMPT], each[labels_module.CLAIM]) for each in labels} == {("1", "1")}
    assert len({pod["metadata"]["uid"] for pod in pods}) == 1


@pytest.mark.timeout(300)
def test_a_long_outage_of_the_api_server_loses_no_log_and_causes_no_adoption(own_lab: Lab) -> None:
    agents = [own_lab.agent(**QUICK) for _ in range(3)]
    submission = own_lab.start({name: {"image": BUSYBOX, "commands": [COUNT]} for name in ACTIONS})
    for name in ACTIONS:
        submission.until_running(name, "line 3\n")
    own_lab.observer.close()
    scheduler_log = own_lab.folder / "scheduler.log"
    ready = scheduler_log.read_text().count(READY)
    kube.provider("apiserver", "stop")
    stopped = time.monotonic()
    for agent in agents:
        until(lambda: agent.get("/readyz")[0] == 503, "an agent did not become unready", 40)  # noqa: B023
        until(lambda: metric(agent, "degraded") == 1, "the metric degraded is not 1", 10)  # noqa: B023
        assert metric(agent, "cluster_reachable") == 0
    until(lambda: scheduler_log.read_text().count(DEGRADED) == 3, "DEGRADED was not received three times", 10)
    noticed = time.monotonic() - stopped
    threading.Event().wait(OUTAGE - noticed)
    assert [agent.get("/livez")[0] for agent in agents] == [200, 200, 200]
    kube.provider("apiserver", "start")
    lasted = time.monotonic() - stopped
    for agent in agents:
        until(lambda: agent.get("/readyz")[0] == 200, "an agent did not become ready again", 40)  # noqa: B023
        until(lambda: metric(agent, "degraded") == 0, "the metric degraded is not 0", 10)  # noqa: B023
    own_lab.observer.open()
    for report in submission.wait(240).values():
        assert report.outcome == ("succeeded", None, 0), report
        assert report.text == WHOLE
        assert report.files["file"].read_text() == "made\n"
        check_first(own_lab, report)
    assert [metric(agent, "sessions_adopted_total") for agent in agents] == [0, 0, 0]
    assert scheduler_log.read_text().count(READY) == ready + 3
    print(f"{len(ACTIONS)} actions, 3 agents, {lasted:.0f} s without an API server, DEGRADED after {noticed:.1f} s")


MAKE = "dd if=/dev/urandom of=big bs=1M count={} 2>/dev/null; sha256sum big"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("moment", ["set-up", "copy", "delete"])
def test_an_action_succeeds_when_the_api_server_restarts_meanwhile(own_lab: Lab, moment: str) -> None:
    agent = own_lab.agent(**QUICK)
    event = {"set-up": ("stage", "setup"), "copy": ("stage", "artifacts"), "delete": ("finished", "artifacts")}[moment]
    # Only a copy must last until the API server is stopped.
    make = MAKE.format(200 if moment == "copy" else 5)
    submission = own_lab.start({"make": {"image": BUSYBOX, "commands": [make]}})
    submission.until("make", lambda report: any((each["event"], each.get("stage")) == event for each in report.events))
    own_lab.observer.close()
    kube.provider("restart", "apiserver")
    own_lab.observer.open()
    report = submission.wait()["make"]
    assert report.outcome == ("succeeded", None, 0), report
    with report.files["big"].open("rb") as file:
        assert report.text.split()[0] == hashlib.file_digest(file, "sha256").hexdigest()
    check_first(own_lab, report)
    until(lambda: metric(agent, "environments") == 0, "the environment was not removed", 60)
    assert metric(agent, "cleanup_failures_total") == 0
    print(f"restarted in the {moment}: {metric(agent, 'artifact_retries_total'):.0f} copies repeated")
