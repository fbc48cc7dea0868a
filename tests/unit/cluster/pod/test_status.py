"""What a pod's status means, as a table of what the real API says; the verdicts of CI stand or fall here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from agent.cluster.pod.setup_status import SECRET_WAIT_SECONDS, Expectations, FirstSeen, Judgement, SetupLimits
from agent.cluster.pod.status import POD_STATUS_WAIT_SECONDS, classify
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Exited, Lost, Observation, Running, SetupFailed, Waiting

NONCE = "0123456789abcdef"
SECRET = "sealci-build-1"
LIMITS = SetupLimits(pending=300.0, pull_grace=30.0, registry_grace=50.0, start=600.0, clone=500.0)
EXPECTATIONS = Expectations(NONCE, commands=3, secret=SECRET, wants_files=True)
BEGAN = datetime(2026, 11, 24, 8, 0, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    """Return a moment as the API writes it."""
    return (BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def record(word: str, command: int, code: int | None = None) -> str:
    """Return what the supervisor has written down."""
    end = "" if code is None else f"sealci {NONCE} end {code}\n"
    return f"sealci {NONCE} {word} {command}\n{end}"


# ---- statuses of containers


def running(name: str) -> Object:
    return {"name": name, "image": "i", "started": True, "ready": True, "state": {"running": {"startedAt": at(1)}}}


def waits(name: str, reason: str = "ContainerCreating", message: str = "") -> Object:
    waiting = {"reason": reason} | ({"message": message} if message else {})
    return {"name": name, "image": "i", "started": False, "ready": False, "state": {"waiting": waiting}}


def ended(name: str, code: int | None, reason: str = "", message: str = "", finished: float = 60) -> Object:
    terminated: Object = {"reason": reason or ("Completed" if code == 0 else "Error"), "finishedAt": at(finished)}
    terminated |= {"startedAt": at(1), "containerID": "containerd://1"}
    terminated |= {} if code is None else {"exitCode": code}
    terminated |= {"message": message} if message else {}
    return {"name": name, "image": "i", "started": False, "ready": False, "state": {"terminated": terminated}}


def pod(
    *containers: Object,
    init: tuple[Object, ...] = (),
    phase: str = "Running",
    node: str | None = "node-1",
    deleted: float | None = None,
    grace: int = 30,
    conditions: tuple[Object, ...] = (),
    **status: str,
) -> Object:
    metadata: Object = {"name": SECRET, "uid": "u-1", "resourceVersion": "1"}
    if deleted is not None:
        metadata |= {"deletionTimestamp": at(deleted + grace), "deletionGracePeriodSeconds": grace}
    told: Object = {"phase": phase, "conditions": list(conditions), **status}
    if containers:
        told["containerStatuses"] = list(containers)
    if init:
        told["initContainerStatuses"] = list(init)
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": told}


def disruption(reason: str, since: float = 50, message: str = "because", status: str = "True") -> Object:
    return {
        "type": "DisruptionTarget",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": at(since),
    }


def unschedulable(message: str) -> Object:
    return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}


FILES = running("files")
DONE = ended("action", 0, message=record("completed", 3, 0))
FAILED = ended("action", 7, message=record("started", 2, 7))
TERMED = ended("action", 143, message=record("started", 2, 143))
KILLED = ended("action", 137, message=record("started", 2))
SHELL_KILLED = ended("action", 137, message=record("started", 2, 137))
FILES_OVER = ended("files", 143, message="ready")
CREATING = (waits("files"), waits("action"))
CLONED = ended("repository", 0)
SUCCESS = Exited(0, 3, None)
PULL = 'rpc error: code = NotFound desc = failed to pull and unpack image "x": not found'


@dataclass
class Look:
    """One look at a pod, or several with time between them."""

    first_seen: FirstSeen = field(default_factory=FirstSeen)
    now: float = 1000.0

    def __call__(
        self, seen: Object | None, after: float = 0.0, wall: float = 60.0, expectations: Expectations = EXPECTATIONS
    ) -> Judgement:
        self.now += after
        return classify(seen, expectations, LIMITS, self.first_seen, self.now, BEGAN + timedelta(seconds=wall))


def never_made(name: str = "action") -> Object:
    """Return what the kubelet writes over a container that it never made, as measured."""
    end = {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None}
    end["message"] = "The container could not be located when the pod was terminated"
    return {"name": name, "image": "i", "started": False, "ready": False, "lastState": {}, "state": {"terminated": end}}


def gone(last: Object | None, expectations: Expectations = EXPECTATIONS) -> Observation:
    """Return what is seen of a pod that is gone, by the state in which it went."""
    return classify(None, expectations, LIMITS, FirstSeen(), 1000.0, BEGAN, last).observation


def see(seen: Object | None, wall: float = 60.0, expectations: Expectations = EXPECTATIONS) -> Observation:
    return Look()(seen, wall=wall, expectations=expectations).observation


# ---- the action container has ended


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(pod(FILES, DONE), SUCCESS, id="all commands ran"),
        pytest.param(pod(DONE, FILES), SUCCESS, id="containers are found by name, in any order"),
        pytest.param(
            pod(FILES, ended("action", 0, message=record("exit", 2, 0))), Exited(0, 2, None), id="left by exit 0"
        ),
        pytest.param(
            pod(FILES, ended("action", 0, reason="OOMKilled", message=record("completed", 3, 0))),
            SUCCESS,
            id="a child was killed for memory, the code is 0",
        ),
        pytest.param(
            pod(FILES_OVER, DONE, phase="Failed", reason="DeadlineExceeded"),
            Exited(0, 3, None, "", False, "DeadlineExceeded"),
            id="ended with 0, then the pod met its deadline",
        ),
        pytest.param(
            pod(FILES, DONE, deleted=65),
            Exited(0, 3, None, "", False, "the pod is being deleted"),
            id="ended with 0, then deleted",
        ),
        pytest.param(
            pod(FILES, DONE, deleted=50),
            Exited(0, 3, None, "", False, "the pod is being deleted"),
            id="all commands ran within the grace of a deletion",
        ),
        pytest.param(
            pod(FILES_OVER, DONE, phase="Failed", reason="Evicted", message="low on memory"),
            Exited(0, 3, None, "", False, "Evicted"),
            id="ended with 0, then evicted",
        ),
        pytest.param(
            pod(FILES, DONE, conditions=(disruption("EvictionByEvictionAPI", 70),), deleted=70),
            Exited(0, 3, None, "", False, "the pod is being deleted"),
            id="ended with 0, then its node was drained",
        ),
        pytest.param(
            pod(FILES_OVER, DONE, phase="Failed"),
            Exited(0, 3, None, "", False, "the files container has ended"),
            id="ended with 0, files has ended too",
        ),
        pytest.param(
            pod(ended("files", 137, "OOMKilled"), DONE),
            Exited(0, 3, None, "", False, "the files container has ended"),
            id="ended with 0, files was killed",
        ),
    ],
)
def test_code_0_is_success_whatever_befell_the_pod_later(seen: Object, expected: Observation) -> None:
    assert see(seen) == expected


LEFT = ended("action", 0, message=record("exit", 3, 0))
SIGKILL = "command 2 failed with exit code 137 (SIGKILL)"
TOLD = ended("action", 9, message=f"sealci {NONCE} exit 2\nsealci {NONCE} told_to_end 9\n")
TOLD_AND_LEFT = ended("action", 0, message=f"sealci {NONCE} exit 2\nsealci {NONCE} told_to_end 0\n")
NO_FILES = replace(EXPECTATIONS, wants_files=False)


@pytest.mark.parametrize(
    ("containers", "expectations", "alone"),
    [
        ((FILES_OVER, LEFT), EXPECTATIONS, Exited(0, 3, None, "", False, "the files container has ended")),
        ((FILES, TOLD), EXPECTATIONS, Exited(9, 2, Reason.COMMAND_FAILED, "command 2 failed with exit code 9")),
        ((FILES, KILLED), EXPECTATIONS, Exited(137, 2, Reason.COMMAND_FAILED, SIGKILL)),
        ((TOLD,), NO_FILES, Exited(9, 2, Reason.COMMAND_FAILED, "command 2 failed with exit code 9", False)),
        ((KILLED,), NO_FILES, Exited(137, 2, Reason.COMMAND_FAILED, SIGKILL, False)),
    ],
    ids=["files", "told, files yet to end", "killed, files yet to end", "told, without files", "killed, without files"],
)
def test_the_kubelet_tells_of_the_containers_before_it_tells_that_it_evicts_their_pod(
    containers: tuple[Object, ...], expectations: Expectations, alone: Exited
) -> None:
    look = Look()
    assert isinstance(look(pod(*containers), expectations=expectations).observation, Running)
    evicted = pod(*containers, phase="Failed", reason="Evicted", message="low on memory")
    assert look(evicted, expectations=expectations).observation == Lost(Reason.EVICTED, "Evicted: low on memory")
    assert look(pod(*containers, phase="Succeeded"), expectations=expectations).observation == alone
    assert look(pod(*containers), after=POD_STATUS_WAIT_SECONDS, expectations=expectations).observation == alone, (
        "it is not waited for for ever"
    )


@pytest.mark.parametrize("answer", [TOLD, TOLD_AND_LEFT, KILLED], ids=["9", "0", "killed"])
def test_the_kubelet_dates_an_eviction_when_it_has_carried_it_out(answer: Object) -> None:
    evicted = (disruption("TerminationByKubelet", 61, "low on memory"),)
    for phase in ("Failed", "Succeeded"):
        found = see(pod(FILES_OVER, answer, phase=phase, conditions=evicted))
        assert found == Lost(Reason.EVICTED, "TerminationByKubelet: low on memory")


def test_what_ends_beside_a_files_container_that_lives_needs_no_other_word() -> None:
    assert see(pod(FILES, LEFT)) == Exited(0, 3, None)


def test_what_nobody_told_to_end_needs_no_other_word() -> None:
    assert see(pod(LEFT), expectations=NO_FILES) == Exited(0, 3, None, "", False)
    assert isinstance(see(pod(TERMED), expectations=NO_FILES), Exited)


@pytest.mark.parametrize("expectations", [EXPECTATIONS, NO_FILES], ids=["files", "without files"])
def test_what_the_agent_told_to_end_or_the_kernel_killed_needs_no_other_word(expectations: Expectations) -> None:
    told = replace(expectations, interrupted=True)
    assert [type(see(pod(FILES, each), expectations=told)) for each in (TOLD, KILLED)] == [Exited, Exited]
    oom = ended("action", 137, "OOMKilled", message=record("started", 2))
    assert isinstance(see(pod(FILES, oom), expectations=expectations), Exited)


@pytest.mark.parametrize(
    ("code", "message", "command", "says"),
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
def test_what_is_no_success(code: int, message: str, command: int, says: str) -> None:
    found = see(pod(FILES, ended("action", code, message=message)))
    if code == 0 and not message.startswith(f"sealci {NONCE}"):
        assert isinstance(found, SetupFailed)
        return
    assert isinstance(found, Exited)
    assert (found.exit_code, found.command, found.reason, found.files) == (code, command, Reason.COMMAND_FAILED, True)
    assert says in found.message


@pytest.mark.parametrize(
    ("container", "reason", "says"),
    [
        (
            ended("action", 137, "OOMKilled", record("started", 2)),
            Reason.OUT_OF_MEMORY,
            "killed for memory in command 2",
        ),
        (ended("action", 137, "OOMKilled", ""), Reason.OUT_OF_MEMORY, "killed for memory (exit code 137)"),
        (ended("action", 1, "OOMKilled", record("started", 1, 1)), Reason.OUT_OF_MEMORY, "(exit code 1)"),
        (
            ended("action", 0, "OOMKilled", record("started", 1)),
            Reason.COMMAND_FAILED,
            "the shell was replaced in command 1",
        ),
        (SHELL_KILLED, Reason.COMMAND_FAILED, "SIGKILL"),
        (TERMED, Reason.COMMAND_FAILED, "SIGTERM"),
    ],
)
def test_memory_explains_only_a_code_that_is_not_0(container: Object, reason: Reason, says: str) -> None:
    found = see(pod(FILES, container))
    assert isinstance(found, Exited)
    assert found.reason is reason
    assert says in found.message


@pytest.mark.parametrize("container", [KILLED, TERMED], ids=["137", "143"])
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
        (pod(conditions=(disruption("PreemptionByScheduler"),), deleted=50), Reason.PREEMPTED),
        (pod(conditions=(disruption("DeletionByTaintManager"),), deleted=50), Reason.NODE_LOST),
        (pod(conditions=(disruption("EvictionByEvictionAPI"),), deleted=50), Reason.EVICTED),
        (pod(conditions=(disruption("TerminationByKubelet"),), phase="Failed"), Reason.EVICTED),
        (pod(conditions=(disruption("SomethingNew"),), phase="Failed"), Reason.EVICTED),
        (pod(deleted=50), Reason.POD_DELETED),
        (pod(deleted=60), Reason.POD_DELETED),
    ],
)
def test_a_signal_from_outside_is_no_failure_of_the_command(seen: Object, reason: Reason, container: Object) -> None:
    seen["status"]["containerStatuses"] = [FILES_OVER, container]
    found = see(seen)
    assert isinstance(found, Lost)
    assert found.reason is reason
    assert not found.unstarted


@pytest.mark.parametrize(
    "seen",
    [
        pod(FILES, ended("action", 137, message=record("started", 2, 137), finished=40), deleted=50),
        pod(FILES, SHELL_KILLED, conditions=(disruption("EvictionByEvictionAPI", 61),), deleted=61),
        pod(FILES, SHELL_KILLED, conditions=(disruption("EvictionByEvictionAPI", 50, status="False"),)),
    ],
    ids=[
        "finished before the deletion",
        "before the drain",
        "no disruption",
    ],
)
def test_an_end_of_its_own_stays_the_commands(seen: Object) -> None:
    found = see(seen)
    assert isinstance(found, Exited)
    assert found.reason is Reason.COMMAND_FAILED


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (pod(FILES, ended("action", None)), Reason.NODE_LOST),
        (
            pod(ended("action", 137, "ContainerStatusUnknown", "The container could not be located"), phase="Failed"),
            Reason.NODE_LOST,
        ),
        (pod(ended("action", 137, "ContainerStatusUnknown"), phase="Failed", reason="Evicted"), Reason.EVICTED),
        (
            pod(ended("action", 137, "ContainerStatusUnknown"), conditions=(disruption("PreemptionByScheduler"),)),
            Reason.PREEMPTED,
        ),
        (pod(ended("action", 0, "ContainerStatusUnknown")), Reason.NODE_LOST),
    ],
)
def test_a_missing_exit_code_is_never_0(seen: Object, reason: Reason) -> None:
    found = see(seen)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (reason, False)


@pytest.mark.parametrize(
    ("container", "says"),
    [
        (
            ended("action", 128, "StartError", 'exec: "/bin/sh": stat /bin/sh: no such file or directory: unknown'),
            "has no /bin/sh",
        ),
        (
            ended("action", 127, "ContainerCannotRun", 'exec: "/bin/sh": stat /bin/sh: no such file or directory'),
            "has no /bin/sh",
        ),
        (
            ended("action", 128, "StartError", "exec /bin/sh: exec format error"),
            "not made for this machine's processor",
        ),
        (ended("action", 128, "StartError", "mkdir /workspace: read-only file system"), "read-only file system"),
        (ended("action", 1, message="some words of the image"), "before the first command"),
        (
            ended("action", 125, message="the workspace /workspace cannot be entered"),
            "the workspace /workspace cannot be entered",
        ),
        (
            waits("action", "CreateContainerError", "container has runAsNonRoot and image will run as root"),
            "restricted profile",
        ),
        (
            waits("action", "CreateContainerConfigError", "container has runAsNonRoot and image will run as root"),
            "restricted profile",
        ),
        (waits("action", "RunContainerError", "exec format error"), "processor"),
    ],
)
def test_a_container_that_cannot_run_fails_the_set_up_with_a_sentence(container: Object, says: str) -> None:
    found = see(pod(FILES, container))
    assert isinstance(found, SetupFailed)
    assert found.reason is Reason.INVALID_CONFIGURATION
    assert says in found.message


# ---- it still goes on


@pytest.mark.parametrize(
    "seen",
    [
        pod(FILES, running("action")),
        pod(FILES, running("action"), init=(CLONED,)),
        pod(FILES, running("action"), deleted=50),
        pod(FILES, running("action"), conditions=(disruption("EvictionByEvictionAPI"),), deleted=50),
        pod(FILES, running("action"), conditions=(disruption("PreemptionByScheduler"),)),
        pod(ended("files", 0), running("action")),
        pod(ended("files", 137, "OOMKilled", "ready"), running("action")),
        pod(ended("files", 143, message="ready"), running("action"), deleted=50),
    ],
    ids=[
        "runs",
        "after a clone",
        "being deleted",
        "drained",
        "about to be preempted",
        "files left",
        "files killed for memory",
        "files ended by the deletion",
    ],
)
def test_a_container_that_runs_still_runs(seen: Object) -> None:
    assert see(seen) == Running()


def test_without_files_nothing_is_waited_for() -> None:
    lone = pod(running("action"))
    assert isinstance(see(lone), Waiting)
    assert see(lone, expectations=replace(EXPECTATIONS, wants_files=False)) == Running()
    over = see(pod(DONE, phase="Succeeded"), expectations=replace(EXPECTATIONS, wants_files=False))
    assert over == Exited(0, 3, None, "", False, "")


def test_a_deletion_that_nobody_carries_out_is_a_loss_in_time() -> None:
    seen = pod(FILES, running("action"), deleted=0, grace=30)
    judgement = Look()(seen, wall=40)
    assert judgement == Judgement(Running(), recheck=21.0)
    overdue = see(seen, wall=61)
    assert isinstance(overdue, Lost)
    assert (overdue.reason, overdue.unstarted) == (Reason.POD_DELETED, False)
    tainted = pod(FILES, running("action"), deleted=0, conditions=(disruption("DeletionByTaintManager", 0),))
    assert isinstance(lost := see(tainted, wall=61), Lost)
    assert lost.reason is Reason.NODE_LOST


# ---- it is gone


@pytest.mark.parametrize(
    ("seen", "reason", "unstarted"),
    [
        pytest.param(None, Reason.POD_DELETED, False, id="missing"),
        pytest.param(
            pod(phase="Failed", reason="OutOfcpu", message="Node didn't have enough resource"),
            Reason.UNSCHEDULABLE,
            True,
            id="OutOfcpu",
        ),
        pytest.param(pod(phase="Failed", reason="OutOfpods"), Reason.UNSCHEDULABLE, True, id="OutOfpods"),
        pytest.param(pod(phase="Failed", reason="NodeAffinity"), Reason.UNSCHEDULABLE, True, id="NodeAffinity"),
        pytest.param(
            pod(phase="Failed", reason="UnexpectedAdmissionError"), Reason.UNSCHEDULABLE, True, id="admission"
        ),
        pytest.param(
            pod(phase="Failed", reason="Evicted", message="disk"), Reason.EVICTED, True, id="evicted before start"
        ),
        pytest.param(
            pod(*CREATING, phase="Failed", reason="Evicted"), Reason.EVICTED, True, id="evicted while pulling"
        ),
        pytest.param(
            pod(FILES, running("action"), phase="Failed", reason="Evicted"),
            Reason.EVICTED,
            False,
            id="evicted while running",
        ),
        pytest.param(
            pod(FILES, FAILED, deleted=50), Reason.POD_DELETED, False, id="a trap's own code after a deletion"
        ),
        pytest.param(
            pod(FILES, ended("action", 0, message=record("exit", 3, 0)), deleted=50),
            Reason.POD_DELETED,
            False,
            id="a trap's exit 0 after a deletion",
        ),
        pytest.param(
            pod(
                FILES,
                ended("action", 0, message=record("started", 3)),
                conditions=(disruption("EvictionByEvictionAPI", 50),),
            ),
            Reason.EVICTED,
            False,
            id="a last command that leaves with 0 when its node is drained",
        ),
        pytest.param(
            pod(FILES_OVER, FAILED, phase="Failed", reason="Evicted"), Reason.EVICTED, False, id="a code, then evicted"
        ),
        pytest.param(
            pod(*CREATING, phase="Failed", reason="Preempting"), Reason.PREEMPTED, True, id="preempted before start"
        ),
        pytest.param(
            pod(*CREATING, phase="Failed", conditions=(disruption("DeletionByPodGC"),)),
            Reason.NODE_LOST,
            False,
            id="node lost: no proof",
        ),
        pytest.param(
            pod(*CREATING, phase="Failed", reason="NodeLost"), Reason.NODE_LOST, False, id="NodeLost: no proof"
        ),
        pytest.param(
            pod(FILES, running("action"), phase="Failed", conditions=(disruption("DeletionByPodGC"),)),
            Reason.NODE_LOST,
            False,
            id="pod GC",
        ),
        pytest.param(
            pod(FILES_OVER, running("action"), phase="Failed"), Reason.INTERNAL, False, id="failed, nobody says why"
        ),
        pytest.param(pod(phase="Succeeded"), Reason.INTERNAL, False, id="Succeeded without an exit code is no success"),
        pytest.param(
            pod(waits("action", "PodInitializing"), init=(ended("repository", 143),), phase="Failed", reason="Evicted"),
            Reason.EVICTED,
            True,
            id="evicted while cloning",
        ),
        pytest.param(
            pod(
                waits("action", "PodInitializing"),
                init=(ended("repository", 143),),
                conditions=(disruption("EvictionByEvictionAPI"),),
                deleted=50,
            ),
            Reason.EVICTED,
            True,
            id="drained while cloning",
        ),
        pytest.param(
            pod(waits("action", "PodInitializing"), init=(ended("repository", 137),), deleted=50),
            Reason.POD_DELETED,
            True,
            id="deleted while cloning",
        ),
        pytest.param(
            pod(ended("files", 143), waits("action"), deleted=50),
            Reason.POD_DELETED,
            False,
            id="deleted while pulling, files up",
        ),
    ],
)
def test_what_is_lost(seen: Object | None, reason: Reason, unstarted: bool) -> None:
    found = see(seen)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (reason, unstarted)
    assert found.message


# ---- it cannot be set up


@pytest.mark.parametrize(
    ("seen", "reason", "says"),
    [
        (
            pod(FILES, waits("action", "InvalidImageName", "couldn't parse image reference")),
            Reason.IMAGE_PULL_FAILED,
            "container action: InvalidImageName",
        ),
        (
            pod(FILES, waits("action", "ErrImageNeverPull", "not present")),
            Reason.IMAGE_PULL_FAILED,
            "ErrImageNeverPull",
        ),
        (
            pod(FILES, waits("action", "ErrImagePull", "invalid reference format")),
            Reason.IMAGE_PULL_FAILED,
            "cannot be pulled",
        ),
        (
            pod(FILES, waits("action", "CreateContainerConfigError", 'secret "other" not found')),
            Reason.INVALID_CONFIGURATION,
            '"other"',
        ),
        (
            pod(FILES, waits("action", "CreateContainerConfigError", f'secret "{SECRET}-2" not found')),
            Reason.INVALID_CONFIGURATION,
            "-2",
        ),
        (
            pod(FILES, waits("action", "CreateContainerConfigError", f"couldn't find key A in Secret x/{SECRET}")),
            Reason.INVALID_CONFIGURATION,
            "key A",
        ),
        (
            pod(init=(ended("repository", 1, message="https://example.org/r: not found\n"),), phase="Failed"),
            Reason.REPOSITORY_FAILED,
            "https://example.org/r: not found",
        ),
        (
            pod(*CREATING, init=(ended("repository", 1),), phase="Failed"),
            Reason.REPOSITORY_FAILED,
            "Error with exit code 1",
        ),
        (
            pod(*CREATING, init=(ended("repository", 137, "OOMKilled"),)),
            Reason.REPOSITORY_FAILED,
            "OOMKilled with exit code 137",
        ),
        (
            pod(ended("files", 128, "StartError", "no python3"), running("action")),
            Reason.INTERNAL,
            "container files: no python3",
        ),
        (pod(ended("files", 1), running("action")), Reason.INTERNAL, "container files: Error with exit code 1"),
    ],
)
def test_what_fails_the_set_up_at_once(seen: Object, reason: Reason, says: str) -> None:
    found = see(seen)
    assert isinstance(found, SetupFailed)
    assert found.reason is reason
    assert says in found.message


@pytest.mark.parametrize(
    ("seen", "reason", "limit", "says"),
    [
        (
            pod(FILES, waits("action", "ErrImagePull", PULL)),
            Reason.IMAGE_PULL_FAILED,
            30,
            "the image of action cannot be pulled",
        ),
        (
            pod(FILES, waits("action", "ImagePullBackOff", "Back-off pulling image")),
            Reason.IMAGE_PULL_FAILED,
            30,
            "Back-off",
        ),
        (
            pod(waits("files", "ImagePullBackOff", "Back-off"), running("action")),
            Reason.IMAGE_PULL_FAILED,
            30,
            "the image of files",
        ),
        (
            pod(*CREATING, init=(waits("repository", "ErrImagePull", PULL),)),
            Reason.IMAGE_PULL_FAILED,
            30,
            "the image of repository",
        ),
        (
            pod(FILES, waits("action", "ErrImagePull", "dial tcp: i/o timeout")),
            Reason.IMAGE_PULL_FAILED,
            50,
            "i/o timeout",
        ),
        (
            pod(FILES, waits("action", "ErrImagePull", "unexpected status 503 Service Unavailable")),
            Reason.IMAGE_PULL_FAILED,
            50,
            "503",
        ),
        (
            pod(FILES, waits("action", "ErrImagePull", "429 Too Many Requests - toomanyrequests")),
            Reason.IMAGE_PULL_FAILED,
            50,
            "429",
        ),
        (pod(FILES, waits("action", "ErrImagePull", "unexpected EOF")), Reason.IMAGE_PULL_FAILED, 50, "EOF"),
        (
            pod(FILES, waits("action", "ErrImagePull", 'image "geofence:1" not found')),
            Reason.IMAGE_PULL_FAILED,
            30,
            "geofence",
        ),
        (
            pod(FILES, waits("action", "CreateContainerConfigError", f'secret "{SECRET}" not found')),
            Reason.INTERNAL,
            SECRET_WAIT_SECONDS,
            "the Secret",
        ),
        (pod(*CREATING), Reason.IMAGE_PULL_FAILED, 600, "starting containers: not done within 600 s"),
        (pod(), Reason.IMAGE_PULL_FAILED, 600, "starting containers"),
        (
            pod(*CREATING, init=(running("repository"),)),
            Reason.REPOSITORY_FAILED,
            500,
            "cloning the repository: not done within 500 s",
        ),
        (pod(phase="Pending", node=None), Reason.UNSCHEDULABLE, 300, "gave no reason"),
        (
            pod(phase="Pending", node=None, conditions=(unschedulable("0/3 nodes: Insufficient cpu."),)),
            Reason.UNSCHEDULABLE,
            300,
            "Insufficient cpu",
        ),
    ],
)
def test_every_wait_has_its_limit(seen: Object, reason: Reason, limit: float, says: str) -> None:
    look = Look()
    first = look(seen)
    assert isinstance(first.observation, Waiting)
    assert first.recheck == limit
    late = look(seen, after=limit - 1)
    assert isinstance(late.observation, Waiting)
    assert late.recheck == 1
    over = look(seen, after=1).observation
    assert isinstance(over, SetupFailed)
    assert over.reason is reason
    assert says in over.message


def test_a_wait_that_passes_begins_anew() -> None:
    look, repository = Look(), waits("repository", "ErrImagePull", PULL)
    action = waits("action", "ErrImagePull", PULL)
    assert isinstance(look(pod(*CREATING, init=(repository,))).observation, Waiting)
    assert isinstance(look(pod(*CREATING, init=(running("repository"),)), after=29).observation, Waiting)
    assert isinstance(look(pod(FILES, action, init=(CLONED,)), after=29).observation, Waiting)
    assert isinstance(look(pod(FILES, action, init=(CLONED,)), after=29).observation, Waiting)


def test_a_pull_that_flaps_between_its_reasons_is_one_wait() -> None:
    look = Look()
    for reason in ("ErrImagePull", "ContainerCreating"):
        look(pod(FILES, waits("action", reason, PULL)), after=14)
    assert isinstance(look(pod(FILES, waits("action", "ErrImagePull", PULL)), after=16).observation, SetupFailed)


def test_a_long_clone_takes_nothing_from_the_time_to_start() -> None:
    look = Look()
    look(pod(*CREATING, init=(waits("repository", "PodInitializing"),)))
    look(pod(*CREATING, init=(running("repository"),)), after=200)
    look(pod(*CREATING, init=(running("repository"),)), after=490)
    assert isinstance(look(pod(*CREATING, init=(CLONED,)), after=9).observation, Waiting)


def test_waiting_says_for_what() -> None:
    assert see(pod(node=None, conditions=(unschedulable("0/1 nodes"),))) == Waiting("waiting for a node: 0/1 nodes")
    assert see(pod(node=None)) == Waiting("waiting for a node")
    assert see(pod(*CREATING)) == Waiting("starting containers")
    assert see(pod(*CREATING, init=(running("repository"),))) == Waiting("cloning the repository")
    pulls = see(pod(FILES, waits("action", "ErrImagePull", PULL)))
    assert pulls == Waiting(f"pulling the image of action: {PULL}")


def test_an_empty_status_is_waiting() -> None:
    bare: Object = {"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": None}, "status": {}}
    assert isinstance(see(bare), Waiting)


# ---- gone, and never made


EVICTION = disruption("EvictionByEvictionAPI", 50)


@pytest.mark.parametrize(
    ("last", "reason", "unstarted"),
    [
        pytest.param(None, Reason.POD_DELETED, False, id="nobody saw it go"),
        pytest.param(pod(phase="Pending", node=None, deleted=50, grace=0), Reason.POD_DELETED, True, id="never bound"),
        pytest.param(
            pod(phase="Pending", node=None, deleted=50, grace=0, conditions=(EVICTION,)),
            Reason.EVICTED,
            True,
            id="evicted, never bound",
        ),
        pytest.param(
            pod(*CREATING, phase="Pending", deleted=50, grace=0), Reason.POD_DELETED, False, id="by force while pulling"
        ),
        pytest.param(
            pod(FILES, never_made(), phase="Failed", deleted=50), Reason.POD_DELETED, True, id="deleted while pulling"
        ),
        pytest.param(pod(FILES, running("action"), deleted=50, grace=0), Reason.POD_DELETED, False, id="while it ran"),
        pytest.param(pod(FILES_OVER, KILLED, phase="Failed", deleted=50), Reason.POD_DELETED, False, id="killed"),
        pytest.param(
            pod(waits("action"), phase="Failed", deleted=50, conditions=(disruption("DeletionByPodGC"),)),
            Reason.NODE_LOST,
            False,
            id="a lost node proves nothing",
        ),
    ],
)
def test_what_is_gone_is_judged_by_the_state_in_which_it_went(
    last: Object | None, reason: Reason, unstarted: bool
) -> None:
    found = gone(last)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (reason, unstarted)


def test_commands_that_had_ended_before_their_pod_went_have_ended() -> None:
    found = gone(pod(FILES_OVER, ended("action", 0, message=record("completed", 3, 0), finished=20), deleted=50))
    assert isinstance(found, Exited)
    assert (found.reason, found.files) == (None, False)


@pytest.mark.parametrize(
    ("action", "phase", "condition", "unstarted"),
    [
        pytest.param(never_made(), "Failed", EVICTION, True, id="never made"),
        pytest.param(never_made(), "Running", EVICTION, False, id="not the kubelet's last word"),
        pytest.param(never_made(), "Failed", disruption("DeletionByTaintManager"), False, id="its node was lost"),
        pytest.param(
            never_made() | {"containerID": "containerd://1"}, "Failed", EVICTION, False, id="there was a container"
        ),
        pytest.param(
            never_made() | {"lastState": {"terminated": {"exitCode": 1}}}, "Failed", EVICTION, False, id="it had run"
        ),
    ],
)
def test_an_end_of_unknown_kind_proves_only_sometimes_that_nothing_ran(
    action: Object, phase: str, condition: Object, unstarted: bool
) -> None:
    found = see(pod(FILES, action, phase=phase, conditions=(condition,)))
    assert isinstance(found, Lost)
    assert found.unstarted is unstarted


def test_containerds_unknown_end_is_no_verdict() -> None:
    """Measured: what ended while containerd was away gets exit code 255 and the reason Unknown."""
    found = see(pod(FILES, ended("action", 255, "Unknown", record("completed", 3, 0))))
    assert isinstance(found, Lost)
    assert found.reason is Reason.NODE_LOST


@pytest.mark.parametrize("reason", ["OutOfcpu", "NodeShutdown", "Evicted"])
def test_what_the_kubelet_rejects_never_ran(reason: str) -> None:
    found = see(pod(phase="Failed", reason=reason, message="Pod was rejected: no room"))
    assert isinstance(found, Lost)
    assert found.unstarted
    assert "no room" in found.message


@pytest.mark.parametrize("code", [0, 143])
def test_a_code_that_was_not_the_commands_own_end_is_no_success_of_an_evicted_pod(code: int) -> None:
    """Evicted for its storage a pod has no condition, and no time of it: measured."""
    left = ended("action", code, message=record("exit", 3, code))
    found = see(pod(FILES_OVER, left, phase="Failed", reason="Evicted"))
    assert isinstance(found, Lost)
    assert found.reason is Reason.EVICTED


@pytest.mark.parametrize(("code", "why"), [(137, "OOMKilled"), (143, "Error")])
def test_files_that_died_before_the_commands_could_begin_is_a_failed_set_up(code: int, why: str) -> None:
    found = see(pod(ended("files", code, why), running("action")))
    assert isinstance(found, SetupFailed)
    assert (found.reason, why in found.message) == (Reason.INTERNAL, True)


def test_a_deletion_that_nobody_carries_out_is_looked_at_in_time() -> None:
    """While its image is pulled, and sooner where the cluster knows that the node does not answer."""
    deleted = pod(*CREATING, deleted=50, grace=2)
    judgement = Look()(deleted, wall=60)
    assert (judgement.observation, judgement.recheck) == (Waiting("starting containers"), 23.0)
    assert isinstance(see(deleted, wall=83), Lost)
    lost = pod(FILES, running("action"), deleted=50, grace=2, conditions=(disruption("DeletionByTaintManager"),))
    assert see(lost, wall=61) == Running()
    found = see(lost, wall=63)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (Reason.NODE_LOST, False)
