"""Pods that are being set up.

The tests cover what a pod waits for, how long the agent lets it wait, and which failures end the set-up.
"""

from __future__ import annotations

import pytest

from agent.cluster.pod.setup_status import SECRET_WAIT_SECONDS
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import SetupFailed, Waiting
from tests.unit.cluster.pod.pods import (
    CLONED,
    CREATING,
    HELPER,
    PULL,
    SECRET,
    PodJudge,
    observe,
    pod,
    running,
    terminated,
    unschedulable,
    waiting,
)


@pytest.mark.parametrize(
    ("seen", "reason", "text"),
    [
        (
            pod(HELPER, waiting("action", "InvalidImageName", "couldn't parse image reference")),
            Reason.IMAGE_PULL_FAILED,
            "container action: InvalidImageName",
        ),
        (
            pod(HELPER, waiting("action", "ErrImageNeverPull", "not present")),
            Reason.IMAGE_PULL_FAILED,
            "ErrImageNeverPull",
        ),
        (
            pod(HELPER, waiting("action", "ErrImagePull", "invalid reference format")),
            Reason.IMAGE_PULL_FAILED,
            "cannot be pulled",
        ),
        (
            pod(
                HELPER, waiting("action", "CreateContainerError", "container ID 6553600 cannot be mapped to a host ID")
            ),
            Reason.INVALID_CONFIGURATION,
            "a user or group id lies beyond the pod's user namespace: container ID 6553600",
        ),
        (
            pod(HELPER, waiting("action", "CreateContainerConfigError", 'secret "other" not found')),
            Reason.INVALID_CONFIGURATION,
            '"other"',
        ),
        (
            pod(HELPER, waiting("action", "CreateContainerConfigError", f'secret "{SECRET}-2" not found')),
            Reason.INVALID_CONFIGURATION,
            "-2",
        ),
        (
            pod(HELPER, waiting("action", "CreateContainerConfigError", f"couldn't find key A in Secret x/{SECRET}")),
            Reason.INVALID_CONFIGURATION,
            "key A",
        ),
        (
            pod(init=(terminated("repository", 1, message="https://example.org/r: not found\n"),), phase="Failed"),
            Reason.REPOSITORY_FAILED,
            "https://example.org/r: not found",
        ),
        (
            pod(*CREATING, init=(terminated("repository", 1),), phase="Failed"),
            Reason.REPOSITORY_FAILED,
            "Error with exit code 1",
        ),
        (
            pod(*CREATING, init=(terminated("repository", 137, "OOMKilled"),)),
            Reason.REPOSITORY_FAILED,
            "OOMKilled with exit code 137",
        ),
        (
            pod(terminated("helper", 128, "StartError", "no python3"), running("action")),
            Reason.INTERNAL,
            "container helper: no python3",
        ),
        (pod(terminated("helper", 1), running("action")), Reason.INTERNAL, "container helper: Error with exit code 1"),
    ],
)
def test_a_permanent_error_fails_the_set_up_at_once(seen: Object, reason: Reason, text: str) -> None:
    found = observe(seen)
    assert isinstance(found, SetupFailed)
    assert found.reason is reason
    assert text in found.message


@pytest.mark.parametrize(
    ("seen", "reason", "limit", "text"),
    [
        (
            pod(HELPER, waiting("action", "ErrImagePull", PULL)),
            Reason.IMAGE_PULL_FAILED,
            30,
            "the image of action cannot be pulled",
        ),
        (
            pod(HELPER, waiting("action", "ImagePullBackOff", "Back-off pulling image")),
            Reason.IMAGE_PULL_FAILED,
            30,
            "Back-off",
        ),
        (
            pod(waiting("helper", "ImagePullBackOff", "Back-off"), running("action")),
            Reason.IMAGE_PULL_FAILED,
            30,
            "the image of helper",
        ),
        (
            pod(*CREATING, init=(waiting("repository", "ErrImagePull", PULL),)),
            Reason.IMAGE_PULL_FAILED,
            30,
            "the image of repository",
        ),
        (
            pod(HELPER, waiting("action", "ErrImagePull", "dial tcp: i/o timeout")),
            Reason.IMAGE_PULL_FAILED,
            50,
            "i/o timeout",
        ),
        (
            pod(HELPER, waiting("action", "ErrImagePull", "unexpected status 503 Service Unavailable")),
            Reason.IMAGE_PULL_FAILED,
            50,
            "503",
        ),
        (
            pod(HELPER, waiting("action", "ErrImagePull", "429 Too Many Requests - toomanyrequests")),
            Reason.IMAGE_PULL_FAILED,
            50,
            "429",
        ),
        (pod(HELPER, waiting("action", "ErrImagePull", "unexpected EOF")), Reason.IMAGE_PULL_FAILED, 50, "EOF"),
        (
            pod(HELPER, waiting("action", "ErrImagePull", 'image "geofence:1" not found')),
            Reason.IMAGE_PULL_FAILED,
            30,
            "geofence",
        ),
        (
            pod(HELPER, waiting("action", "CreateContainerConfigError", f'secret "{SECRET}" not found')),
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
def test_every_wait_has_a_limit(seen: Object, reason: Reason, limit: float, text: str) -> None:
    judge = PodJudge()
    first = judge(seen)
    assert isinstance(first.observation, Waiting)
    assert first.recheck == limit
    late = judge(seen, after=limit - 1)
    assert isinstance(late.observation, Waiting)
    assert late.recheck == 1
    over = judge(seen, after=1).observation
    assert isinstance(over, SetupFailed)
    assert over.reason is reason
    assert text in over.message


def test_the_age_of_a_wait_starts_at_0_after_the_wait_has_ended() -> None:
    judge, repository = PodJudge(), waiting("repository", "ErrImagePull", PULL)
    action = waiting("action", "ErrImagePull", PULL)
    assert isinstance(judge(pod(*CREATING, init=(repository,))).observation, Waiting)
    assert isinstance(judge(pod(*CREATING, init=(running("repository"),)), after=29).observation, Waiting)
    assert isinstance(judge(pod(HELPER, action, init=(CLONED,)), after=29).observation, Waiting)
    assert isinstance(judge(pod(HELPER, action, init=(CLONED,)), after=29).observation, Waiting)


def test_a_pull_that_alternates_between_reasons_is_one_wait() -> None:
    judge = PodJudge()
    for reason in ("ErrImagePull", "ContainerCreating"):
        judge(pod(HELPER, waiting("action", reason, PULL)), after=14)
    assert isinstance(judge(pod(HELPER, waiting("action", "ErrImagePull", PULL)), after=16).observation, SetupFailed)


def test_the_time_of_a_clone_does_not_count_as_start_time() -> None:
    judge = PodJudge()
    judge(pod(*CREATING, init=(waiting("repository", "PodInitializing"),)))
    judge(pod(*CREATING, init=(running("repository"),)), after=200)
    judge(pod(*CREATING, init=(running("repository"),)), after=490)
    assert isinstance(judge(pod(*CREATING, init=(CLONED,)), after=9).observation, Waiting)


def test_waiting_names_what_is_awaited() -> None:
    assert observe(pod(node=None, conditions=(unschedulable("0/1 nodes"),))) == Waiting("waiting for a node: 0/1 nodes")
    assert observe(pod(node=None)) == Waiting("waiting for a node")
    assert observe(pod(*CREATING)) == Waiting("starting containers")
    assert observe(pod(*CREATING, init=(running("repository"),))) == Waiting("cloning the repository")
    pulls = observe(pod(HELPER, waiting("action", "ErrImagePull", PULL)))
    assert pulls == Waiting(f"pulling the image of action: {PULL}")


def test_an_empty_status_is_waiting() -> None:
    bare: Object = {"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": None}, "status": {}}
    assert isinstance(observe(bare), Waiting)


@pytest.mark.parametrize(("code", "why"), [(137, "OOMKilled"), (143, "Error")])
def test_a_helper_killed_before_the_commands_fails_the_set_up(code: int, why: str) -> None:
    found = observe(pod(terminated("helper", code, why), running("action")))
    assert isinstance(found, SetupFailed)
    assert (found.reason, why in found.message) == (Reason.INTERNAL, True)
