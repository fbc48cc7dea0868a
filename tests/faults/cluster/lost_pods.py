"""Helpers for tests of lost pods: deletion, eviction, faults of the node, and the checks of the outcome.

They use kubectl and the commands of deploy.dev.cluster, never the agent's own client. A helper that changes the node
undoes the change at the end of its `with` block.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from agent.domain.json import Object
from tests.e2e import kube
from tests.e2e.lab import Lab, new_namespace, open_lab, until
from tests.e2e.observer import session_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.submission import Report, Submission


# Three commands that write "begun" and then wait. On SIGTERM, EXITS_WITH_9 exits with 9 and EXITS_WITH_0 exits with 0.
# PLAIN does not handle SIGTERM.
EXITS_WITH_9 = "trap 'echo got TERM; exit 9' TERM; echo begun; sleep 1000 & wait"
EXITS_WITH_0 = "trap 'exit 0' TERM; echo begun; sleep 1000 & wait"
PLAIN = "echo begun; exec sleep 1000"
SECURE = {"allowPrivilegeEscalation": False}


@contextlib.contextmanager
def lab_of(folder: Path, **settings: Any) -> Iterator[Lab]:
    """Yield a lab without agents in a new namespace. `settings` are the default settings of the lab's agents."""
    with new_namespace() as namespace, open_lab(namespace, folder, **settings) as lab:
        yield lab


# ---- pods


def pod(lab: Lab, name: str) -> Object:
    """Wait until the action `name` has a pod. Return this pod."""

    def found() -> Object | None:
        pods = [each for each in kube.get("pods", "-n", lab.namespace) if session_of(each).get("name") == name]
        return pods[0] if pods else None

    result: Object = until(found, f"no pod of {name}")
    return result


def uids(lab: Lab, name: str) -> list[str]:
    """Return the UIDs of all pods that the action `name` has had, oldest first."""
    found = [each["metadata"]["uid"] for each in list(lab.observer.states) if session_of(each).get("name") == name]
    return list(dict.fromkeys(found))


def until_detail(submission: Submission, name: str, detail: str) -> None:
    """Wait until the action `name` has an event of a stage whose detail contains `detail`."""

    def has_detail(report: Report) -> bool:
        return any(e["event"] == "stage" and detail in e["detail"] for e in report.events)

    submission.until(name, has_detail)


def until_recreated(lab: Lab, name: str, times: int = 1) -> None:
    """Wait until the pod of the action `name` was re-created `times` times."""
    until(lambda: len(uids(lab, name)) == times + 1, f"the pod of {name} was not re-created", 60)


def delete(lab: Lab, name: str, *options: str) -> None:
    """Delete the pod of the action `name` with `kubectl delete` and these options."""
    kube.kubectl("delete", "pod", "-n", lab.namespace, pod(lab, name)["metadata"]["name"], "--wait=false", *options)


def evict(lab: Lab, name: str) -> None:
    """Evict the pod of the action `name` through the API server, as `kubectl drain` does."""
    target = pod(lab, name)["metadata"]["name"]
    metadata = {"name": target, "namespace": lab.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{lab.namespace}/pods/{target}/eviction"
    kube.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body))


def statuses(lab: Lab, uid: str) -> list[Object]:
    """Return every status of the pod that the lab's observer has seen, in order."""
    return [each["status"] for each in list(lab.observer.states) if each["metadata"]["uid"] == uid]


def ends(lab: Lab, uid: str, container: str = "action") -> list[Object]:
    """Return every terminated status of the pod's container `container` that the lab's observer has seen."""
    return [
        each
        for status in statuses(lab, uid)
        for each in status.get("containerStatuses", ())
        if each["name"] == container and "terminated" in each.get("state", {})
    ]


# ---- the node


def node() -> Object:
    """Return the only node of the cluster."""
    return kube.get("nodes")[0]


def node_name() -> str:
    return str(node()["metadata"]["name"])


def tainted() -> list[str]:
    return [each["key"] for each in node()["spec"].get("taints", ())]


@contextlib.contextmanager
def cordoned() -> Iterator[None]:
    """Keep new pods off the node of the cluster while the `with` block runs."""
    kube.kubectl("cordon", node_name())
    try:
        yield
    finally:
        kube.kubectl("uncordon", node_name())


@contextlib.contextmanager
def started_with(component: str, *flags: str) -> Iterator[None]:
    """Run a component of the cluster, such as `kubelet`, with additional flags while the `with` block runs."""
    kube.provider(component, "start", *flags)
    try:
        yield
    finally:
        kube.provider(component, "start")


@contextlib.contextmanager
def stopped(component: str) -> Iterator[None]:
    """Stop a component of the node while the `with` block runs.

    Then start the component and wait until the node accepts pods.
    """
    kube.provider(component, "stop")
    try:
        yield
    finally:
        kube.provider(component, "start")
        until(lambda: not tainted(), f"the node is still tainted: {tainted()}", 60)


def too_much_memory() -> int:
    """Return a number of bytes between the available memory of the node and the capacity of the node.

    If the kubelet's eviction threshold is this number, the kubelet evicts pods. A kubelet refuses a threshold above the
    capacity.
    """
    summary = json.loads(kube.kubectl("get", "--raw", f"/api/v1/nodes/{node_name()}/proxy/stats/summary"))
    memory = summary["node"]["memory"]
    return int(memory["availableBytes"]) + int(memory["workingSetBytes"]) // 2


# ---- checks


def until_begun(submission: Submission, *names: str) -> None:
    """Wait until each action has logged "begun"."""
    for name in names:
        submission.until_running(name, "begun")


def check_lost(report: Report, reason: str, *words: str) -> None:
    """Check that an action failed in stage `commands` with `reason`, and that its first log line is stored.

    The message of the outcome must contain each of `words`.
    """
    assert report.outcome == ("failed", reason, None), report
    assert report.finished["stage"] == "commands"
    for word in words:
        assert word in report.finished["message"], report
    assert report.text.startswith("begun\n"), report


def check_recreated(lab: Lab, report: Report, *words: str) -> None:
    """Check that an action succeeded in its second pod, in the first attempt.

    The log must contain the line about the re-created pod, and each of `words`.
    """
    assert report.outcome == ("succeeded", None, 0), report
    assert len(uids(lab, report.name)) == 2, uids(lab, report.name)
    assert "no command had run, so the pod is re-created\n" in report.text, report
    for word in words:
        assert word in report.text, report
    sessions = [session_of(each) for each in lab.observer.states]
    assert {each["attempt"] for each in sessions if each.get("name") == report.name} == {1}
