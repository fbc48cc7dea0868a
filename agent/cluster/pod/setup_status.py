"""A pod that is still being set up: for what it waits, for how long it may, and when that has become a failure.

Pure. Every wait has its limit; what cannot pass by itself fails at once, with a sentence for people.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.cluster.pod.fields import container_status, is_running, setup_statuses
from agent.cluster.pod.manifest import ACTION, REPOSITORY
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Observation, SetupFailed, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable


NEVER_RAN = ("StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError")
AT_ONCE = {
    "InvalidImageName": Reason.IMAGE_PULL_FAILED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_FAILED,
    "ImageInspectError": Reason.IMAGE_PULL_FAILED,
    "CreateContainerConfigError": Reason.INVALID_CONFIGURATION,
    "CrashLoopBackOff": Reason.INTERNAL,
}
PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed")
NETWORK = re.compile(
    r"i/o timeout|connection re(fused|set)|no such host|temporary failure|TLS handshake timeout|"
    r"\b(502|503|504|429) |toomanyrequests|network is unreachable|\bEOF\b",
    re.IGNORECASE,
)
NO_SHELL = re.compile(r'/bin/sh": (stat|no such file)|"/bin/sh".*no such file|/bin/sh: no such file', re.IGNORECASE)
BACK_OFF = re.compile(r'^Back-off pulling image "[^"]*": (ErrImagePull: )?')
SECRET_WAIT_SECONDS = 30.0
STARTING = "starting containers"
# Errors of the container runtime that pass by themselves; the limit of the start bounds them.
TRANSIENT = re.compile(
    r"name .* is reserved|context deadline exceeded|DeadlineExceeded|code = Unavailable|failed to sync \w+ cache"
)


@dataclass(frozen=True, slots=True)
class SetupLimits:
    """How long each part of a set-up may take, in seconds."""

    pending: float
    pull_grace: float
    registry_grace: float
    start: float
    clone: float


@dataclass(frozen=True, slots=True)
class Expectations:
    """What the agent itself knows of the environment: how to read the supervisor's words, its own Secret and orders."""

    nonce: str
    commands: int
    secret: str
    wants_files: bool
    interrupted: bool = False


@dataclass(slots=True)
class FirstSeen:
    """Since when a state has been seen, by a key; the API does not tell it for waiting reasons. Monotonic seconds."""

    first: dict[str, float] = field(default_factory=dict)

    def age(self, key: str, now: float) -> float:
        """Return how long `key` has been the case, counting from its first sight."""
        return now - self.first.setdefault(key, now)

    def keep(self, keys: Iterable[str]) -> None:
        """Forget what is no longer the case."""
        alive = set(keys)
        self.first = {key: at for key, at in self.first.items() if key in alive}


@dataclass(frozen=True, slots=True)
class Judgement:
    """An observation, and after how many seconds to look again although nothing may have changed."""

    observation: Observation
    recheck: float | None = None


def cannot_run(message: str) -> SetupFailed:
    """Say why a container could not be started at all."""
    if NO_SHELL.search(message):
        text = "the image has no /bin/sh, which the commands need"
    elif "exec format error" in message:
        text = "the image is not made for this machine's processor (exec format error)"
    elif "non-root" in message or "runAsNonRoot" in message:
        text = "the image runs as root, which the restricted profile forbids"
    else:
        text = f"the container cannot be started: {message}"
    return SetupFailed(Reason.INVALID_CONFIGURATION, text, message)


def waiting(
    pod: Object, expectations: Expectations, limits: SetupLimits, first_seen: FirstSeen, now: float
) -> Judgement:
    """Judge a pod that is still being set up: every wait has its limit."""
    status = pod.get("status", {})
    if not pod.get("spec", {}).get("nodeName"):
        return unscheduled(status, limits, first_seen, now)
    statuses = [*setup_statuses(status), *([found] if (found := container_status(status, ACTION)) else [])]
    reasons = {each["name"]: each["state"]["waiting"] for each in statuses if each.get("state", {}).get("waiting")}
    cloning = any(each["name"] == REPOSITORY and is_running(each) for each in statuses)
    key, limit = ("clone", limits.clone) if cloning else ("start", limits.start)
    first_seen.keep({key, *(f"{name}/pull" for name in reasons), "secret"})
    rechecks = []
    for name, why in reasons.items():
        judgement = stuck(name, why, expectations, limits, first_seen, now)
        if isinstance(judgement, SetupFailed):
            return Judgement(judgement)
        rechecks.append(judgement)
    age = first_seen.age(key, now)
    detail = "cloning the repository" if cloning else started_detail(reasons)
    if age >= limit:
        reason = Reason.REPOSITORY_FAILED if cloning else Reason.IMAGE_PULL_FAILED
        return Judgement(SetupFailed(reason, f"{detail}: not done within {limit:g} s"))
    return Judgement(Waiting(detail), min([*(each for each in rechecks if each), limit - age]))


def started_detail(reasons: dict[str, Object]) -> str:
    """Say what containers wait for."""
    for name, why in reasons.items():
        if why.get("reason") in PULLING:
            return f"pulling the image of {name}: {BACK_OFF.sub('', why.get('message', ''))[:300]}"
    return STARTING


def stuck(
    name: str, why: Object, expectations: Expectations, limits: SetupLimits, first_seen: FirstSeen, now: float
) -> SetupFailed | float | None:
    """Judge one waiting reason: failed, or in how many seconds it will be."""
    reason, message = why.get("reason", ""), why.get("message", "")
    if reason == "CreateContainerConfigError" and f'secret "{expectations.secret}" not found' in message:
        age = first_seen.age("secret", now)
        if age < SECRET_WAIT_SECONDS:
            return SECRET_WAIT_SECONDS - age
        return SetupFailed(Reason.INTERNAL, f"the Secret of the action did not appear within {SECRET_WAIT_SECONDS:g} s")
    if reason in PULLING:
        limit = limits.registry_grace if NETWORK.search(message) else limits.pull_grace
        age = first_seen.age(f"{name}/pull", now)
        if age < limit and not hopeless(message):
            return limit - age
        return SetupFailed(Reason.IMAGE_PULL_FAILED, f"the image of {name} cannot be pulled: {message or reason}")
    if TRANSIENT.search(message):
        return None
    if reason in NEVER_RAN or "non-root" in message or "runAsNonRoot" in message:
        return cannot_run(message or reason)
    if reason in AT_ONCE:
        return SetupFailed(AT_ONCE[reason], f"container {name}: {reason}: {message}")
    return None


def hopeless(message: str) -> bool:
    """Whether a pull error cannot pass by itself."""
    return "invalid reference format" in message


def unscheduled(status: Object, limits: SetupLimits, first_seen: FirstSeen, now: float) -> Judgement:
    """Judge a pod that has no node yet."""
    message = next(
        (each.get("message", "") for each in status.get("conditions", ()) if each["type"] == "PodScheduled"), ""
    )
    age = first_seen.age("pending", now)
    if age >= limits.pending:
        why = message or "the scheduler of the cluster said nothing"
        return Judgement(SetupFailed(Reason.UNSCHEDULABLE, f"no node was found within {limits.pending:g} s: {why}"))
    return Judgement(
        Waiting(f"waiting for a node: {message}" if message else "waiting for a node"), limits.pending - age
    )
