"""Actions that are ended from outside: out of memory, timeout, cancel, deletion, an outage of the kubelet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import kube
from tests.e2e.gate import Gate, gate
from tests.e2e.lab import BUSYBOX, DEBIAN, Lab, until
from tests.e2e.observer import remains, session_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.submission import Report, Submission

EAT = 'python3 -c "x = []\nwhile True: x.append(bytes(1 << 20))"'
SMALL = {"resources": {"memory": "48Mi"}, "artifacts": "none"}
TRAP = "trap 'echo got TERM; exit 9' TERM; echo begun; sleep 1000 & wait"
DEAF = "trap '' TERM; echo begun; while true; do sleep 1; done"


@pytest.fixture(scope="module")
def reports(lab: Lab) -> dict[str, Any]:
    """Run, all at once, the actions of this module that use too much memory or reach their timeout."""
    return lab.run(
        {
            "child-memory": {"image": DEBIAN, "commands": [EAT, "echo never"], **SMALL},
            "shell-memory": {"image": DEBIAN, "commands": ["echo begun", f"exec {EAT}"], **SMALL},
            "survived": {"image": DEBIAN, "commands": [f"{EAT} || echo went on"], **SMALL},
            "timeout": {"image": BUSYBOX, "commands": [TRAP], "timeout": "3s"},
            "timeout-deaf": {
                "image": BUSYBOX,
                "commands": [DEAF],
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


def test_the_exit_code_decides_if_the_shell_survives(reports: dict[str, Any]) -> None:
    assert reports["survived"].outcome == ("succeeded", None, 0), reports["survived"]
    assert "went on" in reports["survived"].text


def test_a_timeout_sends_sigterm_first(reports: dict[str, Any]) -> None:
    report = reports["timeout"]
    assert report.outcome[:2] == ("failed", "DEADLINE_EXCEEDED"), report
    assert "begun" in report.text
    assert "got TERM" in report.text


def test_a_timeout_kills_commands_that_ignore_sigterm(reports: dict[str, Any]) -> None:
    assert reports["timeout-deaf"].outcome == ("failed", "DEADLINE_EXCEEDED", 137), reports["timeout-deaf"]


def test_files_are_copied_after_a_timeout_if_requested(reports: dict[str, Any]) -> None:
    report = reports["timeout-files"]
    assert report.outcome[:2] == ("failed", "DEADLINE_EXCEEDED"), report
    assert report.files["kept"].read_text() == "made\n"


# ---- cancelled actions


@pytest.fixture(scope="module")
def silent() -> Iterator[Gate]:
    """Yield a TCP server that accepts the connections of pods and never answers."""
    with gate() as made:
        yield made


def test_cancel_while_no_node_is_found(lab: Lab) -> None:
    submission = lab.start({"a": {"image": BUSYBOX, "commands": ["true"], "resources": {"cpu": "900"}}})
    until_stage(submission, "setup", "waiting for a node: ")
    check_cancelled(submission, "setup")


def test_cancel_while_a_registry_refuses(lab: Lab) -> None:
    submission = lab.start({"a": {"image": "localhost/sealci-test/no-such:1", "commands": ["true"]}})
    until_stage(submission, "setup", "pulling the image")
    check_cancelled(submission, "setup")


def test_cancel_while_a_registry_is_slow(lab: Lab, silent: Gate) -> None:
    submission = lab.start({"a": {"image": f"{silent.address}/slow/image:1", "commands": ["true"]}})
    silent.until_connected()
    check_cancelled(submission, "setup")


def test_cancel_while_a_repository_does_not_answer(lab: Lab, silent: Gate) -> None:
    repo = {"url": f"https://{silent.address}/none.git"}
    submission = lab.start({"a": {"image": BUSYBOX, "commands": ["true"], "repo": repo}})
    silent.until_connected()
    until_stage(submission, "setup", "cloning the repository")
    check_cancelled(submission, "setup")


def test_cancel_while_commands_run_sends_sigterm_first(lab: Lab) -> None:
    submission = lab.start({"a": {"image": BUSYBOX, "commands": [TRAP]}})
    submission.until_running("a", "begun")
    report = check_cancelled(submission, "commands")
    assert report.text == "begun\ngot TERM\n"
    assert report.finished["exit_code"] == 9


def test_cancel_kills_commands_that_ignore_sigterm(lab: Lab) -> None:
    submission = lab.start({"a": {"image": BUSYBOX, "commands": [DEAF]}})
    submission.until_running("a", "begun")
    assert check_cancelled(submission, "commands").finished["exit_code"] == 137


def test_cancel_while_files_are_copied(lab: Lab) -> None:
    submission = lab.start({"a": {"image": BUSYBOX, "commands": ["head -c 400000000 /dev/zero > big"]}})
    until_stage(submission, "artifacts")
    report = check_cancelled(submission, "artifacts")
    assert report.commands == [(1, 0)]


def until_stage(submission: Submission, stage: str, detail: str = "") -> None:
    """Wait until the agent has reported that action `a` is in `stage`, with a detail that contains `detail`."""

    def reported(report: Report) -> bool:
        return any(e["event"] == "stage" and e["stage"] == stage and detail in e["detail"] for e in report.events)

    submission.until("a", reported)


def check_cancelled(submission: Submission, stage: str) -> Report:
    """Cancel action `a`. Check that the action ends in the given stage and that no pod and no Secret is left."""
    submission.cancel()
    report = submission.wait(60)["a"]
    assert submission.process.returncode == 130
    assert report.outcome[:2] == ("cancelled", "CANCELLED"), report
    assert report.finished["stage"] == stage
    until(lambda: not remains(submission.lab.namespace), f"remains: {remains(submission.lab.namespace)}", 30)
    return report


# ---- pods that are deleted while the commands run

SERVER = "trap 'echo got TERM; exit 0' TERM; echo begun; sleep 1000 & wait"
DELETED: dict[str, tuple[str, list[str]]] = {
    # By the name of a case: the command of the action, and the options with which `kubectl delete` deletes its pod.
    "trap": (TRAP, []),
    "plain": ("echo begun; sleep 1000", []),
    "leaves-with-0": (SERVER, []),
    "replaced-leaves-with-0": (f'exec sh -c "{SERVER}"', []),
    "deaf": (DEAF, []),
    "force": (TRAP, ["--grace-period=0", "--force"]),
}
TOLD = ("trap", "leaves-with-0", "replaced-leaves-with-0")


@pytest.fixture(scope="module")
def deleted(lab: Lab) -> dict[str, Report]:
    """Run one action for each case in DELETED, and delete its pod while its command runs. Return the reports."""
    actions = {name: {"image": BUSYBOX, "commands": [command]} for name, (command, _) in DELETED.items()}
    submission = lab.start(actions)
    for name in actions:
        submission.until_running(name, "begun")
    pods = {session_of(pod).get("name"): pod["metadata"]["name"] for pod in kube.get("pods", "-n", lab.namespace)}
    for name, (_, options) in DELETED.items():
        kube.kubectl("delete", "pod", "-n", lab.namespace, pods[name], "--wait=false", *options)
    return submission.wait(120)


@pytest.mark.parametrize("name", DELETED)
def test_a_deleted_pod(deleted: dict[str, Report], name: str) -> None:
    report = deleted[name]
    assert report.outcome == ("failed", "POD_DELETED", None), report
    assert report.finished["stage"] == "commands"
    assert "deleted" in report.finished["message"]
    assert report.text.startswith("begun\n")


@pytest.mark.parametrize("name", TOLD)
def test_commands_get_sigterm_on_a_deletion_with_grace(deleted: dict[str, Report], name: str) -> None:
    assert "\ngot TERM\n" in deleted[name].text


# ---- an outage of the kubelet


@pytest.fixture
def stop_kubelet() -> Iterator[Callable[[], object]]:
    """Yield a function that stops the kubelet. The kubelet runs again at the end."""
    yield lambda: kube.provider("kubelet", "stop")
    kube.provider("kubelet", "start")


@pytest.mark.alone
def test_an_outage_of_the_kubelet_changes_nothing(lab: Lab, stop_kubelet: Callable[[], object]) -> None:
    """The action `across` runs longer than the outage of the kubelet. The action `within` ends during the outage.

    A background process of `within` has a connection to a TCP server of the test. This connection closes when the
    container of `within` ends.
    """
    with gate() as within, gate() as holder, gate() as across:
        count = "i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo line $i; done"
        held = [f"{holder.knock} & echo begun; {within.knock}", count, "echo made > file"]
        going_on = [f"echo begun; {across.knock}", count, "echo made > file"]
        submission = lab.start(
            {"within": {"image": BUSYBOX, "commands": held}, "across": {"image": BUSYBOX, "commands": going_on}}
        )
        for each in (within, holder, across):
            each.until_connected()
        for name in submission.names:
            submission.until_running(name, "begun")
        stop_kubelet()
        within.open()
        holder.until_left()
        kube.provider("kubelet", "start")
        across.open()
        reports = submission.wait(120)
    for report in reports.values():
        assert report.outcome == ("succeeded", None, 0), report
        assert report.text == "begun\n" + "".join(f"line {i}\n" for i in range(1, 101))
        assert report.files["file"].read_text() == "made\n"


@pytest.mark.alone
def test_cancel_while_the_node_does_not_answer(own_lab: Lab, stop_kubelet: Callable[[], object]) -> None:
    own_lab.agent(cluster={"delete_timeout": "3s"})
    submission = own_lab.start({"a": {"image": BUSYBOX, "commands": [TRAP]}})
    submission.until_running("a", "begun")
    stop_kubelet()
    check_cancelled(submission, "commands")
