"""Two nodes: actions are spread over them, the loss of one takes its own actions alone, an agent leaves a drained one.

Runs with `-m nodes` (`make test-nodes`) on a cluster that was made with CLUSTER_NODES=2. Actions are put on a node by
cordoning the other while they are created, as people do.
"""

from __future__ import annotations

import contextlib
import secrets
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.e2e import kube
from tests.e2e.gate import Gate, gate
from tests.e2e.lab import BUSYBOX, Lab, Submission, new_namespace, until
from tests.e2e.release import Release, helm
from tests.e2e.test_chart import AGENT, ATTEMPT, CLAIM, check_whole, counting, labels_of
from tests.faults import lost
from tests.faults.lost import PLAIN, check_lost, until_begun
from tests.faults.test_lost_running import LEAVES_AT_ONCE, NODE_CONTROLLER

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.timeout(600), pytest.mark.alone, pytest.mark.nodes]
SLOW = 240


@pytest.fixture(scope="module")
def nodes() -> tuple[str, str]:
    """The names of both nodes, the worker last."""
    first, second = sorted(node["metadata"]["name"] for node in kube.get("nodes"))
    return first, second


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose actions do not outlive their node."""
    template = {"spec": {"tolerations": LEAVES_AT_ONCE}}
    with lost.lab_of(tmp_path_factory.mktemp("nodes"), environment={"pod_template": template}) as lab:
        lab.agent(cluster={"delete_timeout": "3s"})
        yield lab


@contextlib.contextmanager
def without(node: str) -> Iterator[None]:
    """Let nothing new come to a node."""
    kube.kubectl("cordon", node)
    try:
        yield
    finally:
        kube.kubectl("uncordon", node)


def waiting(lab: Lab, number: int, end: Gate) -> Submission:
    """Submit so many actions that wait at a gate, and wait until all of them do."""
    action = {"image": BUSYBOX, "commands": ["echo begun", end.knock]}
    submission = lab.start({f"a{i}": action for i in range(number)})
    for _ in range(number):
        end.until_somebody_waits(SLOW)
    return submission


def places(namespace: str) -> Counter[str]:
    """How many pods are on each node."""
    return Counter(pod["spec"]["nodeName"] for pod in kube.get("pods", "-n", namespace))


def test_actions_are_spread_over_the_nodes(lab: Lab, nodes: tuple[str, str]) -> None:
    with gate() as end:
        submission = waiting(lab, 10, end)
        found = places(lab.namespace)
        end.open()
        reports = submission.wait(SLOW)
    print(f"\n  actions per node: {dict(found)}")
    assert set(found) == set(nodes)
    assert [report.outcome for report in reports.values()] == [("succeeded", None, 0)] * 10


def test_a_lost_node_takes_its_own_actions_alone(lab: Lab, nodes: tuple[str, str]) -> None:
    with gate() as end:
        with without(nodes[0]):
            gone = lab.start({"gone": {"image": BUSYBOX, "commands": [PLAIN]}})
            until_begun(gone, "gone")
        with without(nodes[1]):
            kept = waiting(lab, 2, end)
        assert places(lab.namespace) == {nodes[0]: 2, nodes[1]: 1}
        kube.provider("worker", "stop")
        try:
            with lost.started_with("controller-manager", *NODE_CONTROLLER):
                report = gone.wait(SLOW)["gone"]
                # What runs elsewhere has not noticed.
                end.open()
                reports = kept.wait(SLOW)
        finally:
            kube.provider("worker", "start")
    check_lost(report, "NODE_LOST")
    assert [each.outcome for each in reports.values()] == [("succeeded", None, 0)] * 2
    for each in reports.values():
        assert len(lost.uids(lab, each.name)) == 1
    until(lambda: not places(lab.namespace), "a pod remains", 60)


def test_the_agent_of_a_drained_node_loses_no_action(
    nodes: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its actions run on the other node; the other agent goes on with them, their logs and files are whole."""
    address = kube.provider("address").splitlines()[-1]
    with new_namespace() as namespace:
        lab = Lab(namespace, tmp_path_factory.mktemp("drained"), listen=f"{address}:0")
        release = release_of(lab)
        try:
            release.install()
            where = {pod["metadata"]["uid"]: pod["spec"]["nodeName"] for pod in release.agents()}
            assert set(where.values()) == set(nodes), "the agents are not spread"
            with gate() as end, without(nodes[1]):
                submission = lab.start({f"a{i}": counting(end) for i in range(6)})
                for _ in submission.names:
                    end.until_somebody_waits(SLOW)
                assert set(places(namespace)) == {nodes[0]}
                selector = f"--pod-selector=app.kubernetes.io/instance={release.name}"
                kube.kubectl("drain", nodes[1], selector, "--ignore-daemonsets", "--delete-emptydir-data", timeout=SLOW)
                end.open()
                reports = submission.wait(SLOW)
        finally:
            helm("uninstall", release.name, "--namespace", release.namespace, "--ignore-not-found", "--wait")
            kube.kubectl("delete", "namespace", release.namespace, "--wait=false", check=False)
            lab.close()
    check_whole(reports)
    states = labels_of(lab.observer, lab, reports)
    assert {labels[ATTEMPT] for each in states for labels in each} == {"1"}
    drained = {uid for uid, node in where.items() if node == nodes[1]}
    moved = [each for each in states if {labels[AGENT].partition(".")[0] for labels in each} & drained]
    print(f"\n  {len(moved)} of {len(states)} actions were the drained agent's")
    assert moved, "the drained agent had no action"
    for each in moved:
        assert each[-1][AGENT].partition(".")[0] not in drained
        assert each[-1][CLAIM] == "2"


def release_of(lab: Lab) -> Release:
    """A release of two agents whose drain is short."""
    values = {
        "replicaCount": 2,
        "scheduler": {"address": lab.address, "tls": {"enabled": False}},
        "agent": {"slots": 10, "drain_timeout": "1s"},
        "cluster": {"namespace": lab.namespace},
        "environment": {"grace": "2s"},
        "policy": {"default_cpu": "5m", "default_memory": "16Mi"},
        "resources": {"requests": {"cpu": "10m"}},
    }
    return Release(f"r{secrets.token_hex(2)}", f"{lab.namespace}-agents", values)
