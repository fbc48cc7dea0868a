"""Each row of the table of service failures, from the status of a pod."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.cluster.in_pod.start_gate import NOT_READY
from agent.cluster.pod.services.status import SERVICE_WAIT_SECONDS, service_states
from agent.cluster.pod.setup_status import Expectations
from agent.domain.actions import HealthCommand, OnExit, Service
from agent.domain.errors import Reason
from agent.domain.events import ServiceChanged, ServiceState
from agent.domain.json import Object
from agent.domain.observations import Exited, Lost, Observation, Running, SetupFailed, Waiting
from tests.unit.cluster.pod.pods import (
    DONE,
    EXPECTATIONS,
    FAILED,
    HELPER,
    LIMITS,
    PodJudge,
    disruption_condition,
    observe,
    pod,
    running,
    terminated,
    waiting,
)

DB = Service("db", "postgres", ports=(5432,))
HEALTHY = Service("db", "postgres", health=HealthCommand(("x",), 30.0))
PLAIN = Service("db", "postgres")
STARTING = replace(EXPECTATIONS, services=(DB,))
HEALTH = replace(EXPECTATIONS, services=(HEALTHY,))
NEITHER = replace(EXPECTATIONS, services=(PLAIN,))
COMMANDS = replace(STARTING, released=True)
ACTION = running("action")
UP = running("service-db")
UNHEALTHY = {**running("service-db"), "started": False}


def ended(code: int, reason: str = "", finished: float = 60, message: str = "") -> Object:
    return terminated("service-db", code, reason, message, finished)


def with_on_exit(on_exit: OnExit, service: Service = DB, *, released: bool = True) -> Expectations:
    return replace(EXPECTATIONS, services=(replace(service, on_exit=on_exit),), released=released)


# ---- set-up


def test_an_image_of_a_service_follows_the_rules_of_the_actions_image() -> None:
    judge = PodJudge()
    failing = waiting("service-db", "ErrImagePull", "not found")
    # The kubelet starts the other containers although the image of the service is missing.
    seen = pod(HELPER, failing, ACTION)
    assert judge(seen, expectations=STARTING).observation == Waiting("pulling the image of service db: not found")
    failed = judge(seen, after=LIMITS.pull_grace, expectations=STARTING).observation
    assert failed == SetupFailed(Reason.IMAGE_PULL_FAILED, "the image of service db cannot be pulled: not found")
    invalid = observe(pod(HELPER, waiting("service-db", "InvalidImageName", "bad"), ACTION), expectations=STARTING)
    assert invalid == SetupFailed(Reason.IMAGE_PULL_FAILED, "service db: InvalidImageName: bad")


@pytest.mark.parametrize(
    ("expectations", "container", "text"),
    [
        (STARTING, ended(1), "service db ended with exit code 1 before it was ready"),
        (HEALTH, ended(2), "service db ended with exit code 2 before it was ready"),
        (NEITHER, ended(1), "service db ended with exit code 1 before the commands began"),
        (
            STARTING,
            ended(137, "OOMKilled"),
            "service db was killed for memory before it was ready (exit code 137): the limit is too low for it "
            "(resources.memory)",
        ),
        (
            NEITHER,
            ended(128, "StartError", message='exec: "nope": not found'),
            'service db could not be started: exec: "nope": not found',
        ),
        (
            replace(STARTING, user=65532),
            ended(1),
            "service db ended with exit code 1 before it was ready; the profile restricted runs it as user 65532: give "
            "the folders that it writes to in `scratch`, or choose an image that runs without root",
        ),
    ],
    ids=["ports", "health", "neither", "memory", "not started", "restricted"],
)
def test_a_service_that_ends_during_the_setup_fails_it(
    expectations: Expectations, container: Object, text: str
) -> None:
    for action in (ACTION, waiting("action")):
        seen = observe(pod(HELPER, container, action), expectations=expectations)
        assert seen == SetupFailed(Reason.SERVICE_FAILED, text)


def test_a_service_that_ends_with_0_fails_the_setup_only_if_it_has_ports_or_a_health_command() -> None:
    seen = pod(HELPER, ended(0), ACTION)
    judge = PodJudge()
    # TERM of a pod that ends reaches a service before the status of the pod shows the reason.
    assert isinstance(judge(seen, expectations=STARTING).observation, Running)
    assert judge(seen, expectations=STARTING).recheck == SERVICE_WAIT_SECONDS
    failed = judge(seen, after=SERVICE_WAIT_SECONDS, expectations=STARTING).observation
    assert failed == SetupFailed(Reason.SERVICE_FAILED, "service db ended with exit code 0 before it was ready")
    assert observe(seen, expectations=NEITHER) == Running()


def test_a_service_whose_port_does_not_accept_fails_the_setup_by_the_helpers_word() -> None:
    text = "service db did not accept on port 5432 within 120 s"
    seen = pod(terminated("helper", NOT_READY, message=text), UP, ACTION)
    assert observe(seen, expectations=STARTING) == SetupFailed(Reason.SERVICE_FAILED, text)


def test_a_service_whose_health_command_does_not_succeed_in_time_fails_the_setup() -> None:
    judge, seen = PodJudge(), pod(HELPER, UNHEALTHY, ACTION)
    assert judge(seen, expectations=HEALTH).observation == Waiting("waiting for service db: health command")
    assert judge(seen, after=10, expectations=HEALTH).recheck == 20
    failed = judge(seen, after=20, expectations=HEALTH).observation
    text = "the health command of service db did not succeed within 30 s"
    assert failed == SetupFailed(Reason.SERVICE_FAILED, text)
    assert judge(pod(HELPER, UP, ACTION), expectations=HEALTH).observation == Running()


def test_the_wait_for_a_health_command_begins_when_all_containers_run() -> None:
    judge = PodJudge()
    pulling = pod(HELPER, UNHEALTHY, waiting("action"))
    judge(pulling, expectations=HEALTH)
    assert judge(pulling, after=500, expectations=HEALTH).observation == Waiting("starting containers")
    seen = judge(pod(HELPER, UNHEALTHY, ACTION), expectations=HEALTH).observation
    assert seen == Waiting("waiting for service db: health command")


def test_commands_do_not_run_before_the_container_of_a_service_has_started() -> None:
    seen = observe(pod(HELPER, waiting("service-db"), ACTION), expectations=NEITHER)
    assert seen == Waiting("starting containers")


# ---- commands


@pytest.mark.parametrize(
    ("on_exit", "container", "text"),
    [
        (OnExit.CRASH_FAILS, ended(1), "service db ended with exit code 1 while the commands ran"),
        (OnExit.CRASH_FAILS, ended(0), ""),
        (OnExit.ANY_FAILS, ended(0), "service db ended with exit code 0 while the commands ran"),
        (OnExit.IGNORE, ended(1), ""),
        (
            OnExit.CRASH_FAILS,
            ended(137, "OOMKilled"),
            "service db was killed for memory while the commands ran (exit code 137): the limit is too low for it "
            "(resources.memory)",
        ),
        (OnExit.CRASH_FAILS, ended(137), "service db ended with exit code 137 while the commands ran"),
    ],
)
def test_a_service_that_ends_while_the_commands_run_stops_them_by_its_rule(
    on_exit: OnExit, container: Object, text: str
) -> None:
    judge, seen = PodJudge(), pod(HELPER, container, ACTION)
    expectations = with_on_exit(on_exit)
    judge(seen, expectations=expectations)
    later = judge(seen, after=SERVICE_WAIT_SECONDS, expectations=expectations)
    assert later.observation == Running(service_failure=text)


@pytest.mark.parametrize(
    "seen",
    [
        pod(HELPER, ended(1), ACTION, deleted=50),
        pod(HELPER, ended(1), ACTION, conditions=(disruption_condition("EvictionByEvictionAPI"),)),
        pod(HELPER, ended(1), ACTION, phase="Failed", reason="Evicted"),
    ],
    ids=["deleted", "evicted", "final"],
)
def test_a_service_never_hides_the_end_of_its_pod(seen: Object) -> None:
    found = observe(seen, expectations=COMMANDS)
    assert isinstance(found, (Running, Lost))
    assert not getattr(found, "service_failure", "")


def test_an_eviction_is_awaited_after_a_stop_for_a_failed_service() -> None:
    interrupted = replace(COMMANDS, interrupted=True)
    containers = (terminated("helper", 0, message="ready"), ended(1), terminated("action", 143))
    judge = PodJudge()
    assert isinstance(judge(pod(*containers), expectations=interrupted).observation, Running)
    evicted = pod(*containers, phase="Failed", reason="Evicted", message="low on memory")
    assert judge(evicted, expectations=interrupted).observation == Lost(Reason.EVICTED, "Evicted: low on memory")


# ---- the race of two ends


def result(service: Object, action: Object) -> Observation:
    return observe(pod(HELPER, service, action), expectations=COMMANDS)


def test_a_service_that_failed_before_the_commands_ended_decides() -> None:
    text = "service db ended with exit code 1 while the commands ran"
    assert result(ended(1, finished=59), FAILED) == Exited(7, 2, Reason.SERVICE_FAILED, text)
    assert result(ended(1, finished=59), DONE) == Exited(0, 3, Reason.SERVICE_FAILED, text)


def test_in_the_same_second_and_later_the_commands_decide() -> None:
    for finished in (60, 61):
        assert result(ended(1, finished=finished), DONE) == Exited(0, 3, None)
    assert result(ended(0, finished=50), DONE) == Exited(0, 3, None)


def test_a_service_that_term_may_have_ended_must_have_ended_clearly_before() -> None:
    assert result(ended(143, finished=58), DONE) == Exited(0, 3, None)
    assert isinstance(found := result(ended(143, finished=50), DONE), Exited)
    assert found.reason is Reason.SERVICE_FAILED


# ---- the states of services


@pytest.mark.parametrize(
    ("expectations", "container", "state"),
    [
        (STARTING, waiting("service-db"), ServiceChanged("db", ServiceState.STARTING)),
        (STARTING, UP, ServiceChanged("db", ServiceState.STARTING)),
        (replace(STARTING, ready=frozenset({"db"})), UP, ServiceChanged("db", ServiceState.READY)),
        (COMMANDS, UP, ServiceChanged("db", ServiceState.READY)),
        (NEITHER, UP, ServiceChanged("db", ServiceState.READY)),
        (HEALTH, UNHEALTHY, ServiceChanged("db", ServiceState.STARTING)),
        (HEALTH, UP, ServiceChanged("db", ServiceState.READY)),
        (COMMANDS, ended(3), ServiceChanged("db", ServiceState.ENDED, 3)),
        (COMMANDS, ended(137, "OOMKilled"), ServiceChanged("db", ServiceState.ENDED, 137, "killed for memory")),
    ],
)
def test_the_state_of_a_service(expectations: Expectations, container: Object, state: ServiceChanged) -> None:
    assert service_states(pod(HELPER, container, ACTION), expectations) == (state,)
