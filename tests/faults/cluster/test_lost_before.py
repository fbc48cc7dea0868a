"""The pod is lost before a command ran, on a real cluster. The agent re-creates the pod once in the same attempt.

The log then has a line about the re-creation. The agent re-creates a pod only with a proof that no command ran. There
are three proofs: the pod never had a node, the kubelet refused the pod, or the pod's final status shows that container
`action` was never created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import kube
from tests.e2e.gate import gate
from tests.e2e.lab import BUSYBOX, Lab, until
from tests.faults.cluster import lost_pods
from tests.faults.cluster.lost_pods import check_recreated, until_detail, until_recreated

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.timeout(300), pytest.mark.alone]
QUICK = {"cluster": {"lease_duration": "4s", "lease_renew": "1s"}}
HELLO = {"image": BUSYBOX, "commands": ["echo hello; echo made > file"]}


def test_a_pod_deleted_before_it_had_a_node_is_recreated(lab: Lab) -> None:
    with lost_pods.cordoned():
        submission = lab.start({"a": HELLO}, secret_values={})
        until_detail(submission, "a", "waiting for a node: ")
        lost_pods.delete(lab, "a")
        until_recreated(lab, "a")
    report = submission.wait(60)["a"]
    check_recreated(lab, report, "the pod was deleted before it had a node")
    assert report.files["file"].read_text() == "made\n"


def test_an_adopting_agent_recreates_the_pod_too(tmp_path: Path) -> None:
    """The first agent is killed while the pod waits for a node.

    The adopting agent reads the action from the pod's annotation.
    """
    with lost_pods.lab_of(tmp_path) as lab, lost_pods.cordoned():
        first = lab.agent(**QUICK)
        action = {**HELLO, "commands": ['echo "$GREETING" | sed s/e/E/'], "secrets": ["GREETING"]}
        submission = lab.start({"a": action}, secret_values={"GREETING": "hello-secret"})
        until_detail(submission, "a", "waiting for a node: ")
        lost_pods.pod(lab, "a")
        second = lab.agent(**QUICK)
        first.kill()
        until(lambda: "adopted a session" in second.log, "the second agent did not adopt", 60)
        lost_pods.delete(lab, "a")
        until_recreated(lab, "a")
        kube.kubectl("uncordon", lost_pods.node_name())
        report = submission.wait(60)["a"]
        check_recreated(lab, report, "the pod was deleted before it had a node")
        assert report.text.endswith("hEllo-secret\n")


@pytest.mark.parametrize("how", [lost_pods.evict, lost_pods.delete])
def test_a_pod_that_ends_during_the_image_pull_is_recreated_once(lab: Lab, how: Any) -> None:
    """After the first loss of the action's pod, the agent re-creates the pod.

    After the second loss, the action fails. The reason names the cause of the loss, such as EVICTED.
    """
    name = how.__name__
    with gate() as registry:
        submission = lab.start({name: {"image": f"{registry.address}/slow/image:1", "commands": ["true"]}})
        registry.until_connected()
        how(lab, name)
    # A kubelet ends a pod only after the pod's image pull has ended. So the test has ended the pull by closing the
    # registry (a Gate). All later pulls fail.
    until_recreated(lab, name)
    until_detail(submission, name, "pulling the image of action")
    how(lab, name)
    report = submission.wait(90)[name]
    reason = "EVICTED" if how is lost_pods.evict else "POD_DELETED"
    assert report.outcome == ("failed", reason, None), report
    assert report.finished["stage"] == "setup"
    assert report.text.count("no command had run, so the pod is re-created") == 1
    assert len(lost_pods.uids(lab, name)) == 2


def test_a_pod_deleted_by_force_is_not_recreated(lab: Lab) -> None:
    with gate() as registry:
        submission = lab.start({"forced": {"image": f"{registry.address}/slow/image:1", "commands": ["true"]}})
        registry.until_connected()
        lost_pods.delete(lab, "forced", "--force", "--grace-period=0")
        report = submission.wait(60)["forced"]
    assert report.outcome == ("failed", "POD_DELETED", None), report
    assert "re-created" not in report.text
    assert len(lost_pods.uids(lab, "forced")) == 1


def test_a_pod_that_the_kubelet_refuses_is_recreated_once(tmp_path: Path) -> None:
    """A pod with a nodeName bypasses the Kubernetes scheduler.

    The kubelet refuses the pod, because the pod requests too much CPU.
    """
    template = {"spec": {"nodeName": lost_pods.node_name()}}
    with lost_pods.lab_of(tmp_path, environment={"pod_template": template}) as lab:
        lab.agent()
        report = lab.one(BUSYBOX, "true", resources={"cpu": "900"}, timeout=60)
        assert report.outcome == ("failed", "UNSCHEDULABLE", None), report
        assert "the node refused the pod: OutOfcpu" in report.finished["message"]
        assert report.text.count("no command had run, so the pod is re-created") == 1
        assert len(lost_pods.uids(lab, "action")) == 2


def test_a_node_that_creates_no_sandbox_is_reported(tmp_path: Path) -> None:
    """The status of the pod does not name the cause.

    The agent reports the cause from the Kubernetes events of the pod.
    """
    template = {"spec": {"runtimeClassName": "sealci-none"}}
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "none"}
    kube.apply({**runtime, "metadata": {"name": "sealci-none"}})
    try:
        with lost_pods.lab_of(tmp_path, environment={"pod_template": template}, policy={"pull_timeout": "10s"}) as lab:
            lab.agent()
            submission = lab.start({"a": HELLO})
            until_detail(submission, "a", "FailedCreatePodSandBox: ")
            report = submission.wait(60)["a"]
        assert report.outcome == ("failed", "CLUSTER_UNAVAILABLE", None), report
        assert "FailedCreatePodSandBox: " in report.finished["message"]
    finally:
        kube.kubectl("delete", "runtimeclass", "sealci-none")
