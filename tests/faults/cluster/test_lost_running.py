"""The pod is lost after its commands began, on a real cluster. The outcome is neither a success nor COMMAND_FAILED.

The outcome names a cause in the infrastructure: eviction, preemption or a lost node. The last tests check two events
that must not count as a lost pod: a restart of the container runtime, and a sidecar that never ends.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from agent.domain.json import Object
from tests.e2e import kube
from tests.e2e.gate import gate
from tests.e2e.lab import BUSYBOX, Lab, until
from tests.e2e.observer import remains
from tests.faults.cluster import lost_pods
from tests.faults.cluster.lost_pods import EXITS_WITH_0, EXITS_WITH_9, PLAIN, SECURE, check_lost, until_begun

if TYPE_CHECKING:
    pass

pytestmark = [pytest.mark.timeout(300), pytest.mark.alone]

# Tolerations of pods. Without them, the cluster deletes the pods of a lost node only after five minutes.
LEAVES_AT_ONCE = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 0}
    for key in ("unreachable", "not-ready")
]
ENDLESS = ["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"]


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    """Return settings that give pods tolerations, with which the cluster deletes the pods of a lost node at once."""
    template = {"spec": {"tolerations": LEAVES_AT_ONCE}}
    return {"environment": {"pod_template": template}, "cluster": {"delete_timeout": "3s"}}


def start_and_wait(lab: Lab, name: str, command: str, **keys: Any) -> Any:
    """Start an action and wait until it has logged "begun". Return the submission."""
    submission = lab.start({name: {"image": BUSYBOX, "commands": [command], **keys}})
    until_begun(submission, name)
    return submission


# ---- evictions and faults of the node


def test_eviction_for_ephemeral_storage(lab: Lab) -> None:
    fill = "echo begun; head -c 60000000 /dev/zero > /big; exec sleep 1000"
    submission = start_and_wait(lab, "fills", fill, resources={"ephemeral_storage": "20Mi"})
    check_lost(submission.wait(90)["fills"], "EVICTED", "exceeded its local ephemeral storage limit")


def test_eviction_for_memory(lab: Lab) -> None:
    """The eviction ends two actions, whose commands exit with 0 and with 9. Both actions get the reason EVICTED."""
    actions = {"server": EXITS_WITH_0, "strict": EXITS_WITH_9}
    submission = lab.start({name: {"image": BUSYBOX, "commands": [each]} for name, each in actions.items()})
    until_begun(submission, *actions)
    with lost_pods.started_with("kubelet", f"--eviction-hard=memory.available<{lost_pods.too_much_memory()}"):
        reports = submission.wait(120)
    until(lambda: not lost_pods.tainted(), f"the node is still tainted: {lost_pods.tainted()}", 60)
    for report in reports.values():
        check_lost(report, "EVICTED", "The node was low on resource: memory")


def test_kubectl_drain(lab: Lab) -> None:
    """`kubectl drain` sends SIGTERM to the commands. Whatever their exit code is, the reason is EVICTED."""
    # A service that SIGTERM ends with an exit code is not the reason.
    db = {"container": BUSYBOX, "command": ["sh", "-c", EXITS_WITH_9]}
    actions: dict[str, dict[str, Any]] = {
        "traps": {"commands": [EXITS_WITH_9]},
        "leaves": {"commands": [EXITS_WITH_0]},
        "served": {"commands": [EXITS_WITH_0], "services": {"db": db}},
    }
    submission = lab.start({name: {"image": BUSYBOX, **each} for name, each in actions.items()})
    until_begun(submission, *actions)
    uid = lost_pods.uids(lab, "traps")[0]
    selector = f"--pod-selector=sealci.dev/pool={lab.pool}"
    drain = ("drain", lost_pods.node_name(), selector, "--force", "--delete-emptydir-data", "--ignore-daemonsets")
    with lost_pods.cordoned():
        kube.kubectl(*drain)
        reports = submission.wait(60)
    for report in reports.values():
        check_lost(report, "EVICTED", "EvictionByEvictionAPI")
    assert "\ngot TERM\n" in reports["traps"].text
    # From this message, an adopting agent concludes that the commands have possibly begun.
    assert {each["state"]["terminated"]["message"] for each in lost_pods.ends(lab, uid, "helper")} == {"ready"}


def test_preemption_by_a_higher_priority(lab: Lab) -> None:
    submission = start_and_wait(lab, "low", EXITS_WITH_9, resources={"cpu": "1500m"})
    name = f"{lab.namespace}-high"
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": name},
        "value": 1000,
    }
    container = {"name": "c", "image": BUSYBOX, "command": ["true"], "resources": {"requests": {"cpu": "1500m"}}}
    spec = {"restartPolicy": "Never", "priorityClassName": name, "containers": [container]}
    metadata = {"name": "high", "namespace": lab.namespace}
    kube.apply(priority, {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    try:
        report = submission.wait(60)["low"]
    finally:
        kube.kubectl("delete", "pod", "-n", lab.namespace, "high", "--grace-period=1")
        kube.kubectl("delete", "priorityclass", name)
    check_lost(report, "PREEMPTED", "PreemptionByScheduler")


def test_a_lost_node(lab: Lab) -> None:
    """The node is tainted as unreachable, and no kubelet runs that could carry out the deletion of the pod.

    The node controller sets this taint while other nodes work. If all nodes are lost, the controller stops all
    evictions, and on a cluster of one node this often happens before the taint is set. So the test sets the taint.
    """
    submission = start_and_wait(lab, "a", PLAIN)
    with lost_pods.stopped("kubelet"):
        kube.kubectl("taint", "node", lost_pods.node_name(), "node.kubernetes.io/unreachable:NoExecute")
        report = submission.wait(100)["a"]
        until(lambda: not remains(lab.namespace), "the pod object was not deleted", 30)
    check_lost(report, "NODE_LOST", "does not carry that out")


def test_a_restart_of_the_container_runtime(lab: Lab) -> None:
    """An action that runs before and after the restart of the runtime succeeds with its whole log.

    The exit code of an action that ends during the restart is unknown. The agent must not invent an outcome.
    """
    count = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line $i; done"
    with gate() as within, gate() as holder, gate() as across:
        commands = {
            "within": [f"{holder.knock} & echo begun; {within.knock}", count],
            "across": [f"echo begun; {across.knock}", count, "echo made > file"],
        }
        submission = lab.start({name: {"image": BUSYBOX, "commands": each} for name, each in commands.items()})
        for each in (within, holder, across):
            each.until_connected()
        until_begun(submission, *commands)
        with lost_pods.stopped("containerd"):
            within.open()
            holder.until_left()
        across.open()
        reports = submission.wait(120)
    whole = "begun\n" + "".join(f"line {i}\n" for i in range(1, 201))
    report = reports["across"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text == whole
    assert report.files["file"].read_text() == "made\n"
    report, uid = reports["within"], lost_pods.uids(lab, "within")[0]
    codes = {each["state"]["terminated"]["exitCode"] for each in lost_pods.ends(lab, uid)}
    if codes == {0}:
        assert (report.outcome, report.text) == (("succeeded", None, 0), whole)
    else:
        check_lost(report, "NODE_LOST", "lost sight of the container")


# ---- a sidecar that never ends


def run_beside(lab: Lab, name: str) -> None:
    """Run actions in pods with the sidecar `name`.

    The agent must report the outcome and remove the pod, although the sidecar still runs.
    """
    reports = lab.run(
        {
            "good": {"image": BUSYBOX, "commands": ["echo made > file"]},
            "bad": {"image": BUSYBOX, "commands": ["exit 7"]},
        },
        timeout=60,
    )
    assert reports["good"].outcome == ("succeeded", None, 0), reports["good"]
    assert reports["good"].files["file"].read_text() == "made\n"
    assert reports["bad"].outcome == ("failed", "COMMAND_FAILED", 7), reports["bad"]
    seen = [
        status["state"]
        for uid in lost_pods.uids(lab, "good")
        for each in lost_pods.statuses(lab, uid)
        for status in (*each.get("containerStatuses", ()), *each.get("initContainerStatuses", ()))
        if status["name"] == name
    ]
    assert [state for state in seen if "running" in state], f"the sidecar never ran: {seen}"


def sidecar(name: str, **more: Any) -> Object:
    return {"name": name, "image": BUSYBOX, "command": ENDLESS, "securityContext": SECURE, **more}


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_an_endless_sidecar_of_the_pod_template(lab: Lab, kind: str, tmp_path: Any) -> None:
    more = {"restartPolicy": "Always"} if kind == "initContainers" else {}
    template = {"spec": {kind: [sidecar("mesh", **more)]}}
    with lost_pods.lab_of(tmp_path, environment={"pod_template": template}) as own:
        own.agent()
        run_beside(own, "mesh")


def test_an_endless_sidecar_injected_by_admission(lab: Lab) -> None:
    """A MutatingAdmissionPolicy injects the sidecar into each pod, as a mutating webhook would."""
    name = f"{lab.namespace}-inject"
    security = "Object.spec.containers.securityContext{allowPrivilegeEscalation: false}"
    injected = f'name: "injected", image: "{BUSYBOX}", command: {json.dumps(ENDLESS)}, securityContext: {security}'
    value = f"Object.spec.containers{{{injected}}}"
    expression = f'[JSONPatch{{op: "add", path: "/spec/containers/-", value: {value}}}]'
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
    policy = {
        "matchConstraints": {"resourceRules": [rule]},
        "reinvocationPolicy": "Never",
        "failurePolicy": "Fail",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}],
    }
    here = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": lab.namespace}}}
    kube.apply(
        {**api, "kind": "MutatingAdmissionPolicy", "spec": policy},
        {**api, "kind": "MutatingAdmissionPolicyBinding", "spec": {"policyName": name, "matchResources": here}},
    )
    try:
        until(lambda: injects(lab), "the policy does not inject the sidecar", 30)
        run_beside(lab, "injected")
    finally:
        kube.kubectl("delete", "mutatingadmissionpolicybinding,mutatingadmissionpolicy", name)


def injects(lab: Lab) -> bool:
    """Return whether the API server already injects the sidecar of the MutatingAdmissionPolicy into a new pod."""
    dry = ("run", "probe", "-n", lab.namespace, f"--image={BUSYBOX}", "--dry-run=server", "-o", "json")
    return len(json.loads(kube.kubectl(*dry))["spec"]["containers"]) > 1
