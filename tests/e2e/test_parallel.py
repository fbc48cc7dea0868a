"""Many actions at once: each action has its own log and files.

An action waits while no agent has a free slot. A deleted pod does not disturb other actions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, until
from tests.e2e.observer import session_of

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

SLOTS = 20


def test_twenty_run_and_the_twenty_first_waits(lab: Lab) -> None:
    wait = "while [ ! -e /workspace/go ]; do sleep 0.2; done"
    actions = {
        f"a{i}": {"image": BUSYBOX, "commands": [f"echo I am {i}", wait, f"echo {i} > file"]} for i in range(SLOTS + 1)
    }
    submission = lab.start(actions)
    until(lambda: len(running(lab)) == SLOTS, "not all slots are used", 120)
    assert lab.agents[0].get("/metrics")[1].count(f"sealci_agent_slots_used {SLOTS}.0\n") == 1
    waiting = [name for name, report in submission.reports.items() if not report.events]
    assert len(waiting) == 1
    deleted = running(lab)[0]
    kube.kubectl("delete", "pod", "-n", lab.namespace, deleted, "--grace-period=0", "--force", "--wait=false")
    until(lambda: len(running(lab)) == SLOTS and deleted not in running(lab), "the last action did not begin", 60)
    for pod in running(lab):
        kube.kubectl("exec", "-n", lab.namespace, pod, "-c", "action", "--", "touch", "/workspace/go")
    reports = submission.wait()
    lost = [name for name, report in reports.items() if report.outcome[0] != "succeeded"]
    assert [reports[name].outcome[1] for name in lost] == ["POD_DELETED"]
    for name, report in reports.items():
        if name not in lost:
            assert report.text == f"I am {name[1:]}\n"
            assert report.files["file"].read_text() == f"{name[1:]}\n"


POISONED: dict[str, tuple[dict[str, object], str]] = {
    "wrong-processor": ({"image": "localhost/sealci-test/wrongarch:1", "commands": ["true"]}, "INVALID_CONFIGURATION"),
    "loud": ({"image": BUSYBOX, "commands": ["seq 200000; exit 4"]}, "COMMAND_FAILED"),
    "greedy": (
        {"image": BUSYBOX, "commands": ["tail /dev/zero"], "resources": {"memory": "32Mi"}, "artifacts": "none"},
        "OUT_OF_MEMORY",
    ),
    "suicidal": ({"image": BUSYBOX, "commands": ["kill -9 -1; kill -9 $$"]}, "COMMAND_FAILED"),
    "fork-happy": (
        {"image": BUSYBOX, "commands": ["for i in $(seq 200); do sleep 1000 & done; exit 3"]},
        "COMMAND_FAILED",
    ),
}


def test_failing_actions_do_not_disturb_others(lab: Lab) -> None:
    """The actions that must not be disturbed begin before the failing actions and end after them."""
    wait = "while [ ! -e /workspace/go ]; do sleep 0.2; done"
    healthy = {
        f"healthy{i}": {"image": BUSYBOX, "commands": [f"echo begun {i}", wait, f"echo {i} | tee file"]}
        for i in range(4)
    }
    well = lab.start(healthy)
    for name in healthy:
        well.until_running(name, "begun")
    ill = lab.run({name: action for name, (action, _) in POISONED.items()})
    reasons = {name: reason for name, (_, reason) in POISONED.items()}
    assert {name: report.outcome[1] for name, report in ill.items()} == reasons
    assert ill["loud"].text == "".join(f"{number}\n" for number in range(1, 200_001))
    for pod in running(lab):
        kube.kubectl("exec", "-n", lab.namespace, pod, "-c", "action", "--", "touch", "/workspace/go")
    for name, report in well.wait().items():
        assert report.outcome == ("succeeded", None, 0), report
        assert report.text == f"begun {name[-1]}\n{name[-1]}\n"
        assert report.files["file"].read_text() == f"{name[-1]}\n"


def running(lab: Lab) -> list[str]:
    """Return the names of the pods whose container `action` runs now."""
    return [
        pod["metadata"]["name"]
        for pod in kube.get("pods", "-n", lab.namespace)
        if session_of(pod)
        and not pod["metadata"].get("deletionTimestamp")
        and any(
            status["name"] == "action" and "running" in status["state"]
            for status in pod["status"].get("containerStatuses", ())
        )
    ]
