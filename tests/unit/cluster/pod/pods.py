"""Build pod statuses as a real API server reports them, and classify them as the agent does.

The tests of the modules `status` and `setup_status` use this module.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from agent.cluster.pod.setup_status import Expectations, FirstSeen, Judgement, SetupLimits
from agent.cluster.pod.status import classify
from agent.domain.json import Object
from agent.domain.observations import Exited, Observation

NONCE = "0123456789abcdef"
SECRET = "sealci-build-1"
LIMITS = SetupLimits(pending=300.0, pull_grace=30.0, registry_grace=50.0, start=600.0, clone=500.0)
EXPECTATIONS = Expectations(NONCE, commands=3, secret=SECRET, wants_files=True)
BEGAN = datetime(2026, 11, 24, 8, 0, 0, tzinfo=UTC)


def at(seconds: float) -> str:
    """Return the time `seconds` after `BEGAN`, in the format of the Kubernetes API."""
    return (BEGAN + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def record(word: str, command: int, code: int | None = None) -> str:
    """Return a termination message in the supervisor's format.

    `word` is what happened to the command with the number `command`. `code` is the exit code that PID 1 chose, or None
    if PID 1 was killed.
    """
    end = "" if code is None else f"sealci {NONCE} end {code}\n"
    return f"sealci {NONCE} {word} {command}\n{end}"


# ---- statuses of containers


def running(name: str) -> Object:
    return {"name": name, "image": "i", "started": True, "ready": True, "state": {"running": {"startedAt": at(1)}}}


def waiting(name: str, reason: str = "ContainerCreating", message: str = "") -> Object:
    state = {"reason": reason} | ({"message": message} if message else {})
    return {"name": name, "image": "i", "started": False, "ready": False, "state": {"waiting": state}}


def terminated(name: str, code: int | None, reason: str = "", message: str = "", finished: float = 60) -> Object:
    state: Object = {"reason": reason or ("Completed" if code == 0 else "Error"), "finishedAt": at(finished)}
    state |= {"startedAt": at(1), "containerID": "containerd://1"}
    state |= {} if code is None else {"exitCode": code}
    state |= {"message": message} if message else {}
    return {"name": name, "image": "i", "started": False, "ready": False, "state": {"terminated": state}}


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
    result: Object = {"phase": phase, "conditions": list(conditions), **status}
    if containers:
        result["containerStatuses"] = list(containers)
    if init:
        result["initContainerStatuses"] = list(init)
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": result}


def disruption_condition(reason: str, since: float = 50, message: str = "because", status: str = "True") -> Object:
    return {
        "type": "DisruptionTarget",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": at(since),
    }


def unschedulable(message: str) -> Object:
    return {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}


HELPER = running("helper")
DONE = terminated("action", 0, message=record("completed", 3, 0))
FAILED = terminated("action", 7, message=record("started", 2, 7))
ENDED_BY_TERM = terminated("action", 143, message=record("started", 2, 143))
KILLED = terminated("action", 137, message=record("started", 2))
SHELL_KILLED = terminated("action", 137, message=record("started", 2, 137))
HELPER_ENDED = terminated("helper", 143, message="ready")
CREATING = (waiting("helper"), waiting("action"))
CLONED = terminated("repository", 0)
SUCCESS = Exited(0, 3, None)
PULL = 'rpc error: code = NotFound desc = failed to pull and unpack image "x": not found'


@dataclass
class PodJudge:
    """Classifies successive states of one pod. Its clock moves on between two states.

    An object lives as long as a test.
    """

    first_seen: FirstSeen = field(default_factory=FirstSeen)
    now: float = 1000.0

    def __call__(
        self, seen: Object | None, after: float = 0.0, wall: float = 60.0, expectations: Expectations = EXPECTATIONS
    ) -> Judgement:
        self.now += after
        return classify(seen, expectations, LIMITS, self.first_seen, self.now, BEGAN + timedelta(seconds=wall))


def never_made(name: str = "action") -> Object:
    """Return the status that the kubelet writes for a container that it has never created, as on real clusters."""
    end = {"exitCode": 137, "reason": "ContainerStatusUnknown", "startedAt": None, "finishedAt": None}
    end["message"] = "The container could not be located when the pod was terminated"
    return {"name": name, "image": "i", "started": False, "ready": False, "lastState": {}, "state": {"terminated": end}}


def observe_deleted(last: Object | None, expectations: Expectations = EXPECTATIONS) -> Observation:
    """Return what the agent observes for a deleted pod. `last` is the pod's last known state."""
    return classify(None, expectations, LIMITS, FirstSeen(), 1000.0, BEGAN, last).observation


def observe(seen: Object | None, wall: float = 60.0, expectations: Expectations = EXPECTATIONS) -> Observation:
    return PodJudge()(seen, wall=wall, expectations=expectations).observation


EVICTION = disruption_condition("EvictionByEvictionAPI", 50)
NO_FILES = replace(EXPECTATIONS, wants_files=False)
