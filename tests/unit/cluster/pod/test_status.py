"""The verdict about a terminated container `action`, which decides whether the action passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.cluster.pod.setup_status import Expectations
from agent.cluster.pod.status import POD_STATUS_WAIT_SECONDS
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Exited, Lost, Observation, Running, SetupFailed
from tests.unit.cluster.pod.pods import (
    DONE,
    ENDED_BY_TERM,
    EXPECTATIONS,
    HELPER,
    HELPER_ENDED,
    KILLED,
    NO_FILES,
    NONCE,
    SHELL_KILLED,
    SUCCESS,
    PodJudge,
    disruption_condition,
    observe,
    pod,
    record,
    terminated,
    waiting,
)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(pod(HELPER, DONE), SUCCESS, id="all commands ran"),
        pytest.param(pod(DONE, HELPER), SUCCESS, id="containers are found by name, in any order"),
        pytest.param(
            pod(HELPER, terminated("action", 0, message=record("exit", 2, 0))), Exited(0, 2, None), id="left by exit 0"
        ),
        pytest.param(
            pod(HELPER, terminated("action", 0, reason="OOMKilled", message=record("completed", 3, 0))),
            SUCCESS,
            id="a child was killed for memory, the code is 0",
        ),
        pytest.param(
            pod(HELPER_ENDED, DONE, phase="Failed", reason="DeadlineExceeded"),
            Exited(0, 3, None, "", False, "DeadlineExceeded"),
            id="ended with 0, then the pod met its deadline",
        ),
        pytest.param(
            pod(HELPER, DONE, deleted=65),
            Exited(0, 3, None, "", False, "the pod is being deleted"),
            id="ended with 0, then deleted",
        ),
        pytest.param(
            pod(HELPER, DONE, deleted=50),
            Exited(0, 3, None, "", False, "the pod is being deleted"),
            id="all commands ran within the grace of a deletion",
        ),
        pytest.param(
            pod(HELPER_ENDED, DONE, phase="Failed", reason="Evicted", message="low on memory"),
            Exited(0, 3, None, "", False, "Evicted"),
            id="ended with 0, then evicted",
        ),
        pytest.param(
            pod(HELPER, DONE, conditions=(disruption_condition("EvictionByEvictionAPI", 70),), deleted=70),
            Exited(0, 3, None, "", False, "the pod is being deleted"),
            id="ended with 0, then its node was drained",
        ),
        pytest.param(
            pod(HELPER_ENDED, DONE, phase="Failed"),
            Exited(0, 3, None, "", False, "container helper has ended"),
            id="ended with 0, files has ended too",
        ),
        pytest.param(
            pod(terminated("helper", 137, "OOMKilled"), DONE),
            Exited(0, 3, None, "", False, "container helper has ended"),
            id="ended with 0, files was killed",
        ),
    ],
)
def test_code_0_stays_success_after_later_events_on_the_pod(seen: Object, expected: Observation) -> None:
    assert observe(seen) == expected


LEFT_BY_EXIT = terminated("action", 0, message=record("exit", 3, 0))
SIGKILL = "command 2 failed with exit code 137 (SIGKILL)"
EXIT_9_AFTER_TERM = terminated("action", 9, message=f"sealci {NONCE} exit 2\nsealci {NONCE} told_to_end 9\n")
EXIT_0_AFTER_TERM = terminated("action", 0, message=f"sealci {NONCE} exit 2\nsealci {NONCE} told_to_end 0\n")


@pytest.mark.parametrize(
    ("containers", "expectations", "alone"),
    [
        ((HELPER_ENDED, LEFT_BY_EXIT), EXPECTATIONS, Exited(0, 3, None, "", False, "container helper has ended")),
        (
            (HELPER, EXIT_9_AFTER_TERM),
            EXPECTATIONS,
            Exited(9, 2, Reason.COMMAND_FAILED, "command 2 failed with exit code 9"),
        ),
        ((HELPER, KILLED), EXPECTATIONS, Exited(137, 2, Reason.COMMAND_FAILED, SIGKILL)),
        (
            (EXIT_9_AFTER_TERM,),
            NO_FILES,
            Exited(9, 2, Reason.COMMAND_FAILED, "command 2 failed with exit code 9", False),
        ),
        ((KILLED,), NO_FILES, Exited(137, 2, Reason.COMMAND_FAILED, SIGKILL, False)),
    ],
    ids=["files ended", "TERM, files runs", "killed, files runs", "TERM, without files", "killed, without files"],
)
def test_an_eviction_reason_is_awaited_after_the_containers_have_ended(
    containers: tuple[Object, ...], expectations: Expectations, alone: Exited
) -> None:
    judge = PodJudge()
    assert isinstance(judge(pod(*containers), expectations=expectations).observation, Running)
    evicted = pod(*containers, phase="Failed", reason="Evicted", message="low on memory")
    assert judge(evicted, expectations=expectations).observation == Lost(Reason.EVICTED, "Evicted: low on memory")
    assert judge(pod(*containers, phase="Succeeded"), expectations=expectations).observation == alone
    assert judge(pod(*containers), after=POD_STATUS_WAIT_SECONDS, expectations=expectations).observation == alone, (
        "the wait has a limit"
    )


@pytest.mark.parametrize("answer", [EXIT_9_AFTER_TERM, EXIT_0_AFTER_TERM, KILLED], ids=["9", "0", "killed"])
def test_an_eviction_dated_after_the_end_of_the_containers_is_a_loss(answer: Object) -> None:
    evicted = (disruption_condition("TerminationByKubelet", 61, "low on memory"),)
    for phase in ("Failed", "Succeeded"):
        found = observe(pod(HELPER_ENDED, answer, phase=phase, conditions=evicted))
        assert found == Lost(Reason.EVICTED, "TerminationByKubelet: low on memory")


def test_no_pod_status_is_awaited_while_helper_runs() -> None:
    assert observe(pod(HELPER, LEFT_BY_EXIT)) == Exited(0, 3, None)


def test_no_pod_status_is_awaited_for_commands_without_a_signal() -> None:
    assert observe(pod(LEFT_BY_EXIT), expectations=NO_FILES) == Exited(0, 3, None, "", False)
    assert isinstance(observe(pod(ENDED_BY_TERM), expectations=NO_FILES), Exited)


@pytest.mark.parametrize("expectations", [EXPECTATIONS, NO_FILES], ids=["files", "without files"])
def test_no_pod_status_is_awaited_after_an_interrupt_or_an_oom_kill(expectations: Expectations) -> None:
    interrupted = replace(expectations, interrupted=True)
    assert [type(observe(pod(HELPER, each), expectations=interrupted)) for each in (EXIT_9_AFTER_TERM, KILLED)] == [
        Exited,
        Exited,
    ]
    oom = terminated("action", 137, "OOMKilled", message=record("started", 2))
    assert isinstance(observe(pod(HELPER, oom), expectations=expectations), Exited)


@pytest.mark.parametrize(
    ("code", "message", "command", "text"),
    [
        (0, record("started", 1, 0), 1, "the shell was replaced in command 1"),
        (0, "sealci another0nonce0 completed 3\n", 0, "no record"),
        (0, "", 0, "no record"),
        (7, record("started", 2, 7), 2, "command 2 failed with exit code 7"),
        (127, record("started", 1, 127), 1, "(not found)"),
        (137, record("started", 3, 137), 3, "(SIGKILL)"),
        (3, record("exit", 2, 3), 2, "command 2 failed with exit code 3"),
        (1, f"sealci {NONCE} end 1\n", 0, "the commands failed with exit code 1"),
    ],
)
def test_a_failure_names_its_command(code: int, message: str, command: int, text: str) -> None:
    found = observe(pod(HELPER, terminated("action", code, message=message)))
    if code == 0 and not message.startswith(f"sealci {NONCE}"):
        assert isinstance(found, SetupFailed)
        return
    assert isinstance(found, Exited)
    assert (found.exit_code, found.command, found.reason, found.files) == (code, command, Reason.COMMAND_FAILED, True)
    assert text in found.message


@pytest.mark.parametrize(
    ("container", "reason", "text"),
    [
        (
            terminated("action", 137, "OOMKilled", record("started", 2)),
            Reason.OUT_OF_MEMORY,
            "killed for memory in command 2",
        ),
        (terminated("action", 137, "OOMKilled", ""), Reason.OUT_OF_MEMORY, "killed for memory (exit code 137)"),
        (terminated("action", 1, "OOMKilled", record("started", 1, 1)), Reason.OUT_OF_MEMORY, "(exit code 1)"),
        (
            terminated("action", 0, "OOMKilled", record("started", 1)),
            Reason.COMMAND_FAILED,
            "the shell was replaced in command 1",
        ),
        (SHELL_KILLED, Reason.COMMAND_FAILED, "SIGKILL"),
        (ENDED_BY_TERM, Reason.COMMAND_FAILED, "SIGTERM"),
    ],
)
def test_an_oom_kill_explains_only_codes_other_than_0(container: Object, reason: Reason, text: str) -> None:
    found = observe(pod(HELPER, container))
    assert isinstance(found, Exited)
    assert found.reason is reason
    assert text in found.message


@pytest.mark.parametrize("container", [KILLED, ENDED_BY_TERM], ids=["137", "143"])
@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory."), Reason.EVICTED),
        (pod(phase="Failed", reason="Preempting"), Reason.PREEMPTED),
        (pod(phase="Failed", reason="DeadlineExceeded"), Reason.DEADLINE_EXCEEDED),
        (pod(phase="Failed", reason="NodeLost"), Reason.NODE_LOST),
        (
            pod(
                phase="Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown."
            ),
            Reason.NODE_LOST,
        ),
        (pod(conditions=(disruption_condition("PreemptionByScheduler"),), deleted=50), Reason.PREEMPTED),
        (pod(conditions=(disruption_condition("DeletionByTaintManager"),), deleted=50), Reason.NODE_LOST),
        (pod(conditions=(disruption_condition("EvictionByEvictionAPI"),), deleted=50), Reason.EVICTED),
        (pod(conditions=(disruption_condition("TerminationByKubelet"),), phase="Failed"), Reason.EVICTED),
        (pod(conditions=(disruption_condition("SomethingNew"),), phase="Failed"), Reason.EVICTED),
        (pod(deleted=50), Reason.POD_DELETED),
        (pod(deleted=60), Reason.POD_DELETED),
    ],
)
def test_a_disruption_is_not_a_failure_of_the_command(seen: Object, reason: Reason, container: Object) -> None:
    seen["status"]["containerStatuses"] = [HELPER_ENDED, container]
    found = observe(seen)
    assert isinstance(found, Lost)
    assert found.reason is reason
    assert not found.unstarted


@pytest.mark.parametrize(
    "seen",
    [
        pod(HELPER, terminated("action", 137, message=record("started", 2, 137), finished=40), deleted=50),
        pod(HELPER, SHELL_KILLED, conditions=(disruption_condition("EvictionByEvictionAPI", 61),), deleted=61),
        pod(HELPER, SHELL_KILLED, conditions=(disruption_condition("EvictionByEvictionAPI", 50, status="False"),)),
    ],
    ids=[
        "finished before the deletion",
        "before the drain",
        "no disruption",
    ],
)
def test_an_end_before_the_disruption_is_a_failure_of_the_command(seen: Object) -> None:
    found = observe(seen)
    assert isinstance(found, Exited)
    assert found.reason is Reason.COMMAND_FAILED


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (pod(HELPER, terminated("action", None)), Reason.NODE_LOST),
        (
            pod(
                terminated("action", 137, "ContainerStatusUnknown", "The container could not be located"),
                phase="Failed",
            ),
            Reason.NODE_LOST,
        ),
        (pod(terminated("action", 137, "ContainerStatusUnknown"), phase="Failed", reason="Evicted"), Reason.EVICTED),
        (
            pod(
                terminated("action", 137, "ContainerStatusUnknown"),
                conditions=(disruption_condition("PreemptionByScheduler"),),
            ),
            Reason.PREEMPTED,
        ),
        (pod(terminated("action", 0, "ContainerStatusUnknown")), Reason.NODE_LOST),
    ],
)
def test_a_missing_exit_code_is_never_0(seen: Object, reason: Reason) -> None:
    found = observe(seen)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (reason, False)


@pytest.mark.parametrize(
    ("container", "text"),
    [
        (
            terminated(
                "action", 128, "StartError", 'exec: "/bin/sh": stat /bin/sh: no such file or directory: unknown'
            ),
            "has no /bin/sh",
        ),
        (
            terminated("action", 127, "ContainerCannotRun", 'exec: "/bin/sh": stat /bin/sh: no such file or directory'),
            "has no /bin/sh",
        ),
        (
            terminated("action", 128, "StartError", "exec /bin/sh: exec format error"),
            "not made for this machine's processor",
        ),
        (terminated("action", 128, "StartError", "mkdir /workspace: read-only file system"), "read-only file system"),
        (terminated("action", 1, message="some words of the image"), "before the first command"),
        (
            terminated("action", 125, message="the workspace /workspace cannot be entered"),
            "the workspace /workspace cannot be entered",
        ),
        (
            waiting("action", "CreateContainerError", "container has runAsNonRoot and image will run as root"),
            "restricted profile",
        ),
        (
            waiting("action", "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            "restricted profile",
        ),
        (waiting("action", "RunContainerError", "exec format error"), "processor"),
    ],
)
def test_a_container_that_cannot_run_fails_the_set_up_with_a_sentence(container: Object, text: str) -> None:
    found = observe(pod(HELPER, container))
    assert isinstance(found, SetupFailed)
    assert found.reason is Reason.INVALID_CONFIGURATION
    assert text in found.message


def test_an_unknown_end_of_containerd_is_a_lost_node() -> None:
    """If a container ends while containerd is down, it gets exit code 255 and the reason Unknown (measured)."""
    found = observe(pod(HELPER, terminated("action", 255, "Unknown", record("completed", 3, 0))))
    assert isinstance(found, Lost)
    assert found.reason is Reason.NODE_LOST


@pytest.mark.parametrize("code", [0, 143])
def test_an_evicted_pod_whose_shell_left_before_the_last_command_is_lost(code: int) -> None:
    """The status of a pod that was evicted for its use of storage has no condition for the eviction (measured).

    So the status does not give the time of the eviction either.
    """
    left = terminated("action", code, message=record("exit", 3, code))
    found = observe(pod(HELPER_ENDED, left, phase="Failed", reason="Evicted"))
    assert isinstance(found, Lost)
    assert found.reason is Reason.EVICTED
