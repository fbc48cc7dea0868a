"""Pods whose action container has not terminated: running, lost, or deleted."""

from __future__ import annotations

import pytest

from agent.cluster.pod.setup_status import Judgement
from agent.cluster.pod.status import HELPER_TERM_WAIT_SECONDS, HELPER_WAIT_SECONDS
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Exited, Lost, Running, Waiting
from tests.unit.cluster.pod.pods import (
    CLONED,
    CREATING,
    DONE,
    EVICTION,
    FAILED,
    HELPER,
    HELPER_ENDED,
    KILLED,
    NO_FILES,
    PodJudge,
    disruption_condition,
    never_made,
    observe,
    observe_deleted,
    pod,
    record,
    running,
    terminated,
    waiting,
)

# ---- pods whose commands run


@pytest.mark.parametrize(
    "seen",
    [
        pod(HELPER, running("action")),
        pod(HELPER, running("action"), init=(CLONED,)),
        pod(HELPER, running("action"), deleted=50),
        pod(HELPER, running("action"), conditions=(disruption_condition("EvictionByEvictionAPI"),), deleted=50),
        pod(HELPER, running("action"), conditions=(disruption_condition("PreemptionByScheduler"),)),
        pod(terminated("files", 0), running("action")),
        pod(terminated("files", 137, "OOMKilled", "ready"), running("action")),
    ],
    ids=[
        "runs",
        "after a clone",
        "being deleted",
        "drained",
        "about to be preempted",
        "container of an older release left",
        "container of an older release killed for memory",
    ],
)
def test_a_running_container_is_running_during_later_events(seen: Object) -> None:
    assert observe(seen) == Running()


@pytest.mark.parametrize(
    ("ended", "seconds", "how"),
    [
        (terminated("helper", 137, "OOMKilled", "ready"), HELPER_WAIT_SECONDS, "was killed for memory"),
        (terminated("helper", 137, message="ready"), HELPER_WAIT_SECONDS, "ended with exit code 137"),
        (terminated("helper", 1, message="ready"), HELPER_WAIT_SECONDS, "ended with exit code 1"),
        (terminated("helper", 0), HELPER_TERM_WAIT_SECONDS, "ended with exit code 0"),
        (terminated("helper", 143, message="ready"), HELPER_TERM_WAIT_SECONDS, "ended with exit code 143"),
    ],
)
def test_a_helper_that_ends_while_the_commands_run_makes_the_pod_lost(ended: Object, seconds: float, how: str) -> None:
    judge = PodJudge()
    seen = pod(ended, running("action"))
    assert judge(seen) == Judgement(Running("container helper has ended"), recheck=seconds)
    text = f"container helper {how} while the commands ran, so nothing could read their output"
    assert judge(seen, after=seconds).observation == Lost(Reason.INTERNAL, text)


def test_a_helper_that_ends_with_its_pod_is_no_loss_of_its_own() -> None:
    judge = PodJudge()
    ended = terminated("helper", 137, message="ready")
    assert judge(pod(ended, running("action"), deleted=50)) == Judgement(Running("the pod ends"), recheck=51.0)
    drained = pod(ended, running("action"), conditions=(disruption_condition("EvictionByEvictionAPI"),))
    assert judge(drained, after=HELPER_WAIT_SECONDS).observation == Running("the pod ends")


@pytest.mark.parametrize("name", ["helper", "files"])
def test_the_commands_run_after_the_helper_has_started(name: str) -> None:
    assert isinstance(observe(pod(waiting(name), running("action"))), Waiting)
    assert observe(pod(running(name), running("action"))) == Running()


def test_in_a_pod_of_version_0_1_without_files_the_commands_run_at_once() -> None:
    lone = pod(running("action"))
    assert observe(lone, expectations=NO_FILES) == Running()
    over = observe(pod(DONE, phase="Succeeded"), expectations=NO_FILES)
    assert over == Exited(0, 3, None, "", False, "")


def test_a_deletion_that_the_node_does_not_carry_out_is_a_loss() -> None:
    seen = pod(HELPER, running("action"), deleted=0, grace=30)
    judgement = PodJudge()(seen, wall=40)
    assert judgement == Judgement(Running(), recheck=21.0)
    overdue = observe(seen, wall=61)
    assert isinstance(overdue, Lost)
    assert (overdue.reason, overdue.unstarted) == (Reason.POD_DELETED, False)
    tainted = pod(HELPER, running("action"), deleted=0, conditions=(disruption_condition("DeletionByTaintManager", 0),))
    assert isinstance(lost := observe(tainted, wall=61), Lost)
    assert lost.reason is Reason.NODE_LOST


# ---- lost pods


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
            pod(HELPER, running("action"), phase="Failed", reason="Evicted"),
            Reason.EVICTED,
            False,
            id="evicted while running",
        ),
        pytest.param(
            pod(HELPER, FAILED, deleted=50), Reason.POD_DELETED, False, id="a trap's own code after a deletion"
        ),
        pytest.param(
            pod(HELPER, terminated("action", 0, message=record("exit", 3, 0)), deleted=50),
            Reason.POD_DELETED,
            False,
            id="a trap's exit 0 after a deletion",
        ),
        pytest.param(
            pod(
                HELPER,
                terminated("action", 0, message=record("started", 3)),
                conditions=(disruption_condition("EvictionByEvictionAPI", 50),),
            ),
            Reason.EVICTED,
            False,
            id="a last command that leaves with 0 when its node is drained",
        ),
        pytest.param(
            pod(HELPER_ENDED, FAILED, phase="Failed", reason="Evicted"),
            Reason.EVICTED,
            False,
            id="a code, then evicted",
        ),
        pytest.param(
            pod(*CREATING, phase="Failed", reason="Preempting"), Reason.PREEMPTED, True, id="preempted before start"
        ),
        pytest.param(
            pod(*CREATING, phase="Failed", conditions=(disruption_condition("DeletionByPodGC"),)),
            Reason.NODE_LOST,
            False,
            id="node lost: no proof",
        ),
        pytest.param(
            pod(*CREATING, phase="Failed", reason="NodeLost"), Reason.NODE_LOST, False, id="NodeLost: no proof"
        ),
        pytest.param(
            pod(HELPER, running("action"), phase="Failed", conditions=(disruption_condition("DeletionByPodGC"),)),
            Reason.NODE_LOST,
            False,
            id="pod GC",
        ),
        pytest.param(
            pod(HELPER_ENDED, running("action"), phase="Failed"), Reason.INTERNAL, False, id="failed without a reason"
        ),
        pytest.param(pod(phase="Succeeded"), Reason.INTERNAL, False, id="Succeeded without an exit code is no success"),
        pytest.param(
            pod(
                waiting("action", "PodInitializing"),
                init=(terminated("repository", 143),),
                phase="Failed",
                reason="Evicted",
            ),
            Reason.EVICTED,
            True,
            id="evicted while cloning",
        ),
        pytest.param(
            pod(
                waiting("action", "PodInitializing"),
                init=(terminated("repository", 143),),
                conditions=(disruption_condition("EvictionByEvictionAPI"),),
                deleted=50,
            ),
            Reason.EVICTED,
            True,
            id="drained while cloning",
        ),
        pytest.param(
            pod(waiting("action", "PodInitializing"), init=(terminated("repository", 137),), deleted=50),
            Reason.POD_DELETED,
            True,
            id="deleted while cloning",
        ),
        pytest.param(
            pod(terminated("helper", 143), waiting("action"), deleted=50),
            Reason.POD_DELETED,
            False,
            id="deleted while pulling, files up",
        ),
    ],
)
def test_a_loss_has_a_reason_and_shows_whether_commands_had_started(
    seen: Object | None, reason: Reason, unstarted: bool
) -> None:
    found = observe(seen)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (reason, unstarted)
    assert found.message


# ---- deleted pods, and containers that were never created


@pytest.mark.parametrize(
    ("last", "reason", "unstarted"),
    [
        pytest.param(None, Reason.POD_DELETED, False, id="deletion event missed"),
        pytest.param(pod(phase="Pending", node=None, deleted=50, grace=0), Reason.POD_DELETED, True, id="never bound"),
        pytest.param(
            pod(phase="Pending", node=None, deleted=50, grace=0, conditions=(EVICTION,)),
            Reason.EVICTED,
            True,
            id="evicted, never bound",
        ),
        pytest.param(
            pod(*CREATING, phase="Pending", deleted=50, grace=0),
            Reason.POD_DELETED,
            False,
            id="deleted by force while pulling",
        ),
        pytest.param(
            pod(HELPER, never_made(), phase="Failed", deleted=50), Reason.POD_DELETED, True, id="deleted while pulling"
        ),
        pytest.param(pod(HELPER, running("action"), deleted=50, grace=0), Reason.POD_DELETED, False, id="while it ran"),
        pytest.param(pod(HELPER_ENDED, KILLED, phase="Failed", deleted=50), Reason.POD_DELETED, False, id="killed"),
        pytest.param(
            pod(waiting("action"), phase="Failed", deleted=50, conditions=(disruption_condition("DeletionByPodGC"),)),
            Reason.NODE_LOST,
            False,
            id="a lost node proves nothing",
        ),
    ],
)
def test_a_deleted_pod_is_judged_by_its_last_state(last: Object | None, reason: Reason, unstarted: bool) -> None:
    found = observe_deleted(last)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (reason, unstarted)


def test_commands_that_ended_before_the_deletion_keep_their_result() -> None:
    found = observe_deleted(
        pod(HELPER_ENDED, terminated("action", 0, message=record("completed", 3, 0), finished=20), deleted=50)
    )
    assert isinstance(found, Exited)
    assert (found.reason, found.files) == (None, False)


@pytest.mark.parametrize(
    ("action", "phase", "condition", "unstarted"),
    [
        pytest.param(never_made(), "Failed", EVICTION, True, id="never made"),
        pytest.param(never_made(), "Running", EVICTION, False, id="the phase is not final"),
        pytest.param(
            never_made(), "Failed", disruption_condition("DeletionByTaintManager"), False, id="its node was lost"
        ),
        pytest.param(
            never_made() | {"containerID": "containerd://1"}, "Failed", EVICTION, False, id="there was a container"
        ),
        pytest.param(
            never_made() | {"lastState": {"terminated": {"exitCode": 1}}}, "Failed", EVICTION, False, id="it had run"
        ),
    ],
)
def test_when_an_end_of_unknown_kind_proves_that_no_command_ran(
    action: Object, phase: str, condition: Object, unstarted: bool
) -> None:
    found = observe(pod(HELPER, action, phase=phase, conditions=(condition,)))
    assert isinstance(found, Lost)
    assert found.unstarted is unstarted


@pytest.mark.parametrize("reason", ["OutOfcpu", "NodeShutdown", "Evicted"])
def test_a_pod_that_the_kubelet_rejects_never_started(reason: str) -> None:
    found = observe(pod(phase="Failed", reason=reason, message="Pod was rejected: no room"))
    assert isinstance(found, Lost)
    assert found.unstarted
    assert "no room" in found.message


def test_an_overdue_deletion_is_rechecked_in_time() -> None:
    """If a pod still exists long after its deletion should have ended, the agent regards the pod as lost.

    The agent checks this also while the image is pulled. If Kubernetes reports the pod's node as lost, the agent waits
    for a shorter time.
    """
    deleted = pod(*CREATING, deleted=50, grace=2)
    judgement = PodJudge()(deleted, wall=60)
    assert (judgement.observation, judgement.recheck) == (Waiting("starting containers"), 23.0)
    assert isinstance(observe(deleted, wall=83), Lost)
    lost = pod(
        HELPER, running("action"), deleted=50, grace=2, conditions=(disruption_condition("DeletionByTaintManager"),)
    )
    assert observe(lost, wall=61) == Running()
    found = observe(lost, wall=63)
    assert isinstance(found, Lost)
    assert (found.reason, found.unstarted) == (Reason.NODE_LOST, False)
