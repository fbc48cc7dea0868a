"""Judge a pod that is still being set up: what it waits for, and when the wait has become a failure.

The module performs no I/O. Every wait has a limit. A state that cannot pass by itself fails at once, with a sentence
for people.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent.cluster.pod.fields import container_status, is_running, setup_statuses
from agent.cluster.pod.manifest import ACTION, REPOSITORY
from agent.cluster.pod.services.containers import PREFIX as SERVICE_PREFIX
from agent.cluster.pod.services.containers import describe_container
from agent.cluster.pod.services.status import KEY as SERVICE_KEY
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Observation, SetupFailed, Waiting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent.domain.actions import Service


# Reasons of containers that the container runtime could not start.
NEVER_RAN = ("StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError")
# Reasons of waiting containers that do not pass by themselves, each with the reason that the action then fails with.
FAILED_AT_ONCE = {
    "InvalidImageName": Reason.IMAGE_PULL_FAILED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_FAILED,
    "ImageInspectError": Reason.IMAGE_PULL_FAILED,
    "CreateContainerConfigError": Reason.INVALID_CONFIGURATION,
    "CrashLoopBackOff": Reason.INTERNAL,
}
PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed")
# Image pull errors caused by the network or by an overloaded image registry. These errors get the longer limit
# `registry_grace`.
NETWORK = re.compile(
    r"i/o timeout|connection re(fused|set)|no such host|temporary failure|TLS handshake timeout|"
    r"\b(502|503|504|429) |toomanyrequests|network is unreachable|\bEOF\b",
    re.IGNORECASE,
)
NO_SHELL = re.compile(r'/bin/sh": (stat|no such file)|"/bin/sh".*no such file|/bin/sh: no such file', re.IGNORECASE)
BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": (ErrImagePull: )?')
# Text of an image pull error that does not pass by itself.
INVALID_REFERENCE = "invalid reference format"
# Seconds until a missing Secret of the action is a failure. The agent creates the Secret right after the pod.
SECRET_WAIT_SECONDS = 30.0
STARTING = "starting containers"
# Errors of the container runtime that pass by themselves. Only the limit of the whole start applies to these errors.
TRANSIENT = re.compile(
    r"name .* is reserved|context deadline exceeded|DeadlineExceeded|code = Unavailable|failed to sync \w+ cache"
)
# Sandbox errors of the node's network, which may still be starting or wait for a free address. Only the limit of the
# whole start applies to them.
NETWORK_OF_NODE = re.compile(
    r"\bcni\b|network plugin|plugin type=|\bIP address|no available (IP|address)", re.IGNORECASE
)
# Sandbox and container errors of a user or group id that the pod's user namespace does not contain.
UNMAPPED_ID = re.compile(r"unmapped (user|uid|group|gid)|\b(container ID|uid|gid) \d+ cannot be mapped", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SetupLimits:
    """How long each part of a set-up may take, in seconds. The limits come from the policy of the agent."""

    pending: float
    pull_grace: float
    registry_grace: float
    start: float
    clone: float
    services: float = 120.0


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the agent knows of an environment besides the pod's status. The environment owns it.

    `commands` is the number of commands. `secret` is the name of the action's Secret. `interrupted` is True after the
    agent itself has sent TERM to the commands. `released`: the commands have begun, so all services were ready. `ready`
    holds the names of services whose ports accept. `user` is the user id of all containers in profile `restricted`, 0
    in another profile.
    """

    nonce: str
    commands: int
    secret: str
    wants_files: bool
    interrupted: bool = False
    services: tuple[Service, ...] = ()
    released: bool = False
    ready: frozenset[str] = frozenset()
    user: int = 0


@dataclass(slots=True)
class FirstSeen:
    """When each state of one pod was seen for the first time, in monotonic seconds. The environment owns it.

    The API has no such times for waiting reasons.
    """

    times: dict[str, float] = field(default_factory=dict)

    def age(self, key: str, now: float) -> float:
        """Return the seconds since the state `key` was seen first. The first call with this `key` returns 0."""
        return now - self.times.setdefault(key, now)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Drop all states except `keys`, so that the age of a dropped state starts at 0 when it is seen again."""
        kept = set(keys)
        self.times = {key: at for key, at in self.times.items() if key in kept}


@dataclass(frozen=True, slots=True)
class Judgement:
    """An observation, and the seconds until the pod must be judged again even without a new event."""

    observation: Observation
    recheck: float | None = None


@dataclass(frozen=True, slots=True)
class WaitingReason:
    """Why one container waits, as the kubelet reports it."""

    container: str
    reason: str
    message: str


def cannot_run(message: str) -> SetupFailed:
    """Return the failure of a container that the container runtime could not start."""
    if NO_SHELL.search(message):
        text = "the image has no /bin/sh, which the commands need"
    elif "exec format error" in message:
        text = "the image is not made for this machine's processor (exec format error)"
    elif forbids_root(message):
        text = "the image runs as root, which the restricted profile forbids"
    elif UNMAPPED_ID.search(message):
        text = f"a user or group id lies beyond the pod's user namespace: {message}"
    else:
        text = f"the container cannot be started: {message}"
    return SetupFailed(Reason.INVALID_CONFIGURATION, text, message)


def sandbox_failure(message: str) -> SetupFailed | None:
    """Return the failure of a pod whose sandbox fails again and again with this message. None if the error can pass.

    The kubelet retries, so no failure proves that no command ran. The pod is therefore not re-created.
    """
    if TRANSIENT.search(message) or NETWORK_OF_NODE.search(message):
        return None
    if UNMAPPED_ID.search(message):
        return cannot_run(message)
    return SetupFailed(Reason.CLUSTER_UNAVAILABLE, f"the node cannot start the pod: {message}")


def forbids_root(message: str) -> bool:
    return "non-root" in message or "runAsNonRoot" in message


def setup_containers(status: Object) -> list[Object]:
    """Return the statuses of all containers that have to start during the set-up."""
    action = container_status(status, ACTION)
    services = [each for each in status.get("containerStatuses", ()) if each["name"].startswith(SERVICE_PREFIX)]
    return [*setup_statuses(status), *services, *([action] if action else [])]


def waiting_reasons(statuses: Iterable[Object]) -> list[WaitingReason]:
    """Return why each waiting container waits, in the order of the statuses."""
    return [
        WaitingReason(each["name"], waiting.get("reason", ""), waiting.get("message", ""))
        for each in statuses
        if (waiting := each.get("state", {}).get("waiting"))
    ]


def start_detail(reasons: Iterable[WaitingReason]) -> str:
    """Return what the containers wait for, as text for people."""
    for each in reasons:
        if each.reason in PULLING:
            return f"pulling the image of {describe_container(each.container)}: {BACK_OFF.sub('', each.message)[:300]}"
    return STARTING


@dataclass(frozen=True, slots=True)
class SetupJudge:
    """Judges one state of a pod that is being set up. It lives for one call of `classify`.

    `now` is in monotonic seconds.
    """

    expectations: Expectations
    limits: SetupLimits
    first_seen: FirstSeen
    now: float

    def judge(self, pod: Object) -> Judgement:
        """Return `SetupFailed` if a wait has failed or has exceeded its limit, otherwise `Waiting`."""
        status = pod.get("status", {})
        if not pod.get("spec", {}).get("nodeName"):
            return self.judge_unscheduled(status)
        containers = setup_containers(status)
        reasons = waiting_reasons(containers)
        cloning = any(each["name"] == REPOSITORY and is_running(each) for each in containers)
        phase = "clone" if cloning else "start"
        of_services = (key for key in self.first_seen.times if key.startswith(SERVICE_KEY))
        self.first_seen.keep_only({phase, *(f"{each.container}/pull" for each in reasons), "secret", *of_services})
        rechecks = []
        for each in reasons:
            result = self.judge_waiting_reason(each)
            if isinstance(result, SetupFailed):
                return Judgement(result)
            if result:
                rechecks.append(result)
        limit = self.limits.clone if cloning else self.limits.start
        age = self.first_seen.age(phase, self.now)
        detail = "cloning the repository" if cloning else start_detail(reasons)
        if age >= limit:
            reason = Reason.REPOSITORY_FAILED if cloning else Reason.IMAGE_PULL_FAILED
            return Judgement(SetupFailed(reason, f"{detail}: not done within {limit:g} s"))
        return Judgement(Waiting(detail), min([*rechecks, limit - age]))

    def judge_unscheduled(self, status: Object) -> Judgement:
        """Judge a pod that has no node yet."""
        conditions = status.get("conditions", ())
        message = next((each.get("message", "") for each in conditions if each["type"] == "PodScheduled"), "")
        limit = self.limits.pending
        age = self.first_seen.age("pending", self.now)
        if age >= limit:
            why = message or "the cluster's scheduler gave no reason"
            return Judgement(SetupFailed(Reason.UNSCHEDULABLE, f"no node was found within {limit:g} s: {why}"))
        return Judgement(Waiting(f"waiting for a node: {message}" if message else "waiting for a node"), limit - age)

    def judge_waiting_reason(self, waiting: WaitingReason) -> SetupFailed | float | None:
        """Judge why a container waits.

        Return a failure, or the seconds until the wait becomes a failure. Return None if only the limit of the whole
        start applies.
        """
        return JUDGES.get(waiting.reason, SetupJudge.judge_message)(self, waiting)

    def judge_pull(self, waiting: WaitingReason) -> SetupFailed | float | None:
        limit = self.limits.registry_grace if NETWORK.search(waiting.message) else self.limits.pull_grace
        age = self.first_seen.age(f"{waiting.container}/pull", self.now)
        if age < limit and INVALID_REFERENCE not in waiting.message:
            return limit - age
        why = waiting.message or waiting.reason
        name = describe_container(waiting.container)
        return SetupFailed(Reason.IMAGE_PULL_FAILED, f"the image of {name} cannot be pulled: {why}")

    def judge_config_error(self, waiting: WaitingReason) -> SetupFailed | float | None:
        """Judge a container whose configuration is incomplete.

        The cause may be that the agent has not created the action's Secret yet.
        """
        if f'secret "{self.expectations.secret}" not found' not in waiting.message:
            return self.judge_message(waiting)
        age = self.first_seen.age("secret", self.now)
        if age < SECRET_WAIT_SECONDS:
            return SECRET_WAIT_SECONDS - age
        return SetupFailed(Reason.INTERNAL, f"the Secret of the action did not appear within {SECRET_WAIT_SECONDS:g} s")

    def judge_message(self, waiting: WaitingReason) -> SetupFailed | None:
        """Judge a waiting container by the message. The reason alone does not show whether the error is temporary."""
        if TRANSIENT.search(waiting.message):
            return None
        service = waiting.container.startswith(SERVICE_PREFIX)
        name = describe_container(waiting.container)
        if waiting.reason in NEVER_RAN or forbids_root(waiting.message):
            failure = cannot_run(waiting.message or waiting.reason)
            return replace(failure, message=f"{name}: {failure.message}") if service else failure
        if reason := FAILED_AT_ONCE.get(waiting.reason):
            return SetupFailed(reason, f"{'' if service else 'container '}{name}: {waiting.reason}: {waiting.message}")
        return None


# The method that judges each of these waiting reasons. `judge_message` judges all other reasons.
JUDGES: dict[str, Callable[[SetupJudge, WaitingReason], SetupFailed | float | None]] = {
    **dict.fromkeys(PULLING, SetupJudge.judge_pull),
    "CreateContainerConfigError": SetupJudge.judge_config_error,
}
