"""How actions end when not by themselves: memory, time, cancel, deletion, a kubelet that goes away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, DEBIAN, Lab, until
from tests.e2e.observer import MANAGED, remains

if TYPE_CHECKING:
    from collections.abc import Iterator

EAT = 'python3 -c "x = []\nwhile True: x.append(bytes(1 << 20))"'
SMALL = {"resources": {"memory": "48Mi"}, "artifacts": "none"}
TRAP = "trap 'echo got TERM; exit 9' TERM; echo begun; sleep 1000 & wait"


@pytest.fixture(scope="module")
def reports(lab: Lab) -> dict[str, Any]:
    """Run what ends without a hand of ours, all at once."""
    return lab.run(
        {
            "child-memory": {"image": DEBIAN, "commands": [EAT, "echo never"], **SMALL},
            "shell-memory": {"image": DEBIAN, "commands": ["echo begun", f"exec {EAT}"], **SMALL},
            "survived": {"image": DEBIAN, "commands": [f"{EAT} || echo went on"], **SMALL},
            "timeout": {"image": BUSYBOX, "commands": [TRAP], "timeout": "3s"},
            "timeout-deaf": {
                "image": BUSYBOX,
                "commands": ["trap '' TERM; echo begun; while true; do sleep 1; done"],
                "timeout": "3s",
            },
            "timeout-files": {
                "image": BUSYBOX,
                "commands": ["echo made > kept; sleep 1000"],
                "timeout": "3s",
                "artifacts": {"when": "always"},
            },
        }
    )


def test_a_child_killed_for_memory(reports: dict[str, Any]) -> None:
    report = reports["child-memory"]
    assert report.outcome == ("failed", "OUT_OF_MEMORY", 137), report
    assert "never" not in report.text


def test_the_shell_killed_for_memory(reports: dict[str, Any]) -> None:
    assert reports["shell-memory"].outcome == ("failed", "OUT_OF_MEMORY", 137), reports["shell-memory"]


def test_the_exit_code_decides_when_the_shell_went_on(reports: dict[str, Any]) -> None:
    assert reports["survived"].outcome == ("succeeded", None, 0), reports["survived"]
    assert "went on" in reports["survived"].text


def test_a_timeout_terminates_first(reports: dict[str, Any]) -> None:
    report = reports["timeout"]
    assert report.outcome[:2] == ("failed", "DEADLINE_EXCEEDED"), report
    assert "begun" in report.text
    assert "got TERM" in report.text


def test_a_timeout_kills_what_ignores_term(reports: dict[str, Any]) -> None:
    assert reports["timeout-deaf"].outcome == ("failed", "DEADLINE_EXCEEDED", 137), reports["timeout-deaf"]


def test_files_are_kept_after_a_timeout_when_wanted(reports: dict[str, Any]) -> None:
    report = reports["timeout-files"]
    assert report.outcome[:2] == ("failed", "DEADLINE_EXCEEDED"), report
    assert report.files["kept"].read_text() == "made\n"


# ---- cancel


CANCELS: dict[str, tuple[dict[str, Any], str]] = {
    "pending": ({"image": BUSYBOX, "commands": ["true"], "resources": {"cpu": "900"}}, "waiting for a node"),
    "pulling": ({"image": "localhost/sealci-test/no-such:1", "commands": ["true"]}, "pulling the image"),
    "cloning": (
        {"image": BUSYBOX, "commands": ["true"], "repo": {"url": "https://10.244.255.254/none.git"}},
        "cloning the repository",
    ),
    "running": ({"image": BUSYBOX, "commands": [TRAP]}, ""),
    "copying": ({"image": BUSYBOX, "commands": ["dd if=/dev/urandom of=big bs=1M count=400"]}, ""),
}


@pytest.mark.parametrize("name", CANCELS)
def test_cancel(lab: Lab, name: str) -> None:
    action, detail = CANCELS[name]
    submission = lab.start({name: action})
    stage = {"running": "commands", "copying": "artifacts"}.get(name, "setup")
    submission.until(name, lambda report: stage_seen(report, stage, detail))
    if name == "running":
        submission.until_running(name, "begun")
    submission.cancel()
    report = submission.wait(90)[name]
    assert report.outcome[:2] == ("cancelled", "CANCELLED"), report
    assert report.finished["stage"] == stage
    until(lambda: not remains(lab.namespace), f"remains: {remains(lab.namespace)}", 30)
    if name == "running":
        assert "got TERM" in report.text


def stage_seen(report: Any, stage: str, detail: str) -> bool:
    """Whether a stage, with a detail, was told."""
    return any(e["event"] == "stage" and e["stage"] == stage and detail in e["detail"] for e in report.events)


# ---- deleted under it


@pytest.mark.parametrize("force", [False, True], ids=["grace", "force"])
def test_a_pod_that_somebody_deletes(lab: Lab, force: bool) -> None:
    submission = lab.start({"a": {"image": BUSYBOX, "commands": [TRAP]}})
    submission.until_running("a", "begun")
    options = ["--grace-period=0", "--force"] if force else []
    kube.kubectl("delete", "pod", "-n", lab.namespace, "-l", MANAGED, "--wait=false", *options)
    report = submission.wait(90)["a"]
    assert report.outcome[:2] == ("failed", "POD_DELETED"), report
    assert "deleted" in report.finished["message"]


# ---- the node's kubelet


@pytest.fixture
def kubelet() -> Iterator[None]:
    """Whatever happens, the kubelet runs afterwards."""
    yield
    kube.provider("kubelet", "start")


def test_a_kubelet_that_stops_and_comes_back_changes_nothing(lab: Lab, kubelet: None) -> None:
    count = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo line $i; sleep 0.2; done; echo made > file"
    submission = lab.start({"a": {"image": BUSYBOX, "commands": [count]}})
    submission.until_running("a", "line 5\n")
    kube.provider("kubelet", "stop")
    kube.provider("kubelet", "start")
    report = submission.wait(120)["a"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text == "".join(f"line {i}\n" for i in range(1, 61))
    assert report.files["file"].read_text() == "made\n"
