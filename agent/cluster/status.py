"""What happened to an environment: pure functions from a pod's status to an observation.

The order is DESIGN section 6. The action container's own termination comes first: it ended, and whatever befell the pod
later only decides whether its files could be had. A missing pod is never success, a missing exit code never 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from agent.cluster import supervisor
from agent.cluster.manifest import ACTION, FILES, REPOSITORY
from agent.errors import Reason
from agent.observations import Exited, Lost, Observation, Running, SetupFailed, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterable

Object = dict[str, Any]

NEVER_RAN = ("StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError")
UNKNOWN_END = ("ContainerStatusUnknown",)
REFUSED_BY_KUBELET = ("OutOf", "NodeAffinity", "UnexpectedAdmissionError", "Outof", "PodOS", "InvalidNodeInfo")
NODE_GONE = ("NodeLost", "NodeShutdown", "Shutdown", "Terminated")
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
SECRET_WAIT = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each part of a set-up may take, in seconds."""

    pending: float
    pull_grace: float
    registry_grace: float
    start: float
    clone: float


@dataclass(frozen=True, slots=True)
class Intent:
    """What the agent itself knows of the environment: how to read the supervisor's words, and its own Secret."""

    nonce: str
    commands: int
    secret: str
    wants_files: bool


@dataclass(slots=True)
class History:
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
class Sight:
    """An observation, and after how many seconds to look again although nothing may have changed."""

    observation: Observation
    recheck: float | None = None


def classify(pod: Object | None, intent: Intent, limits: Limits, history: History, now: float, wall: datetime) -> Sight:
    """Say what a pod's status means.

    Args:
        pod: as the API last said; None when the API says it is gone.
        now: monotonic seconds, for `history`.
        wall: the cluster's time as far as known, only held against deletion timestamps.
    """
    if pod is None:
        return Sight(Lost(Reason.POD_DELETED, "the pod was deleted while the action ran"))
    status = pod.get("status", {})
    action = container(status, ACTION)
    if terminated := (action or {}).get("state", {}).get("terminated"):
        return Sight(ended(pod, terminated, intent))
    lost = gone(pod, action, wall)
    if lost:
        return Sight(lost)
    for each in setup_statuses(status):
        if failed := set_up_ended(each, pod):
            return Sight(failed)
    if runs(action) and not files_missing(status, intent):
        return Sight(Running(), recheck=deletion_recheck(pod, wall))
    return waiting(pod, intent, limits, history, now)


def container(status: Object, name: str) -> Object | None:
    """Return the status of a container by its name."""
    return next((each for each in status.get("containerStatuses", ()) if each["name"] == name), None)


def runs(status: Object | None) -> bool:
    """Whether a container runs, as far as the API knows."""
    return "running" in (status or {}).get("state", {})


def setup_statuses(status: Object) -> list[Object]:
    """Return the statuses that set-up depends on: init containers, then `files`."""
    files = container(status, FILES)
    return [*status.get("initContainerStatuses", ()), *([files] if files else [])]


def ended(pod: Object, terminated: Object, intent: Intent) -> Observation:
    """Judge an action container that has terminated."""
    reason, message = terminated.get("reason", ""), terminated.get("message", "")
    outside = disruption(pod)
    if "exitCode" not in terminated or reason in UNKNOWN_END:
        if outside:
            return Lost(outside.reason, outside.message)
        return Lost(Reason.NODE_LOST, f"the node lost sight of the container: {reason} {message}".strip())
    if reason in NEVER_RAN:
        return cannot_run(message or reason)
    code = terminated["exitCode"]
    files, lost = files_state(pod, intent)
    ending = supervisor.read_termination(message, intent.nonce)
    verdict = supervisor.judge(code, ending, intent.commands)
    if verdict.succeeded:
        return Exited(code, verdict.command, None, verdict.message, files, lost)
    if outside and code in KILLED and not finished_before(terminated, outside.since):
        return Lost(outside.reason, outside.message)
    if reason == "OOMKilled" and code != 0:
        text = f"killed for memory{in_command(verdict.command)} (exit code {code}): the limit is too low for it"
        return Exited(code, verdict.command, Reason.OUT_OF_MEMORY, text, files, lost)
    if ending is None:
        text = f"the image's /bin/sh ended with exit code {code} before the first command"
        if code == supervisor.WORKSPACE_FAILED and message:
            text = message.strip()
        return SetupFailed(Reason.INVALID_CONFIGURATION, text, message)
    return Exited(code, verdict.command, Reason.COMMAND_FAILED, verdict.message, files, lost)


KILLED = (137, 143)


def in_command(command: int) -> str:
    """Name a command, if one is known."""
    return f" in command {command}" if command else ""


def files_state(pod: Object, intent: Intent) -> tuple[bool, str]:
    """Say whether files can be copied now, and why not."""
    if not intent.wants_files:
        return False, ""
    if pod["metadata"].get("deletionTimestamp"):
        return False, "the pod is being deleted"
    files = container(pod.get("status", {}), FILES)
    if files and files.get("state", {}).get("running"):
        return True, ""
    return False, pod.get("status", {}).get("reason") or "the files container has ended"


def files_missing(status: Object, intent: Intent) -> bool:
    """Whether the supervisor still waits for the files container: no command has run then."""
    files = container(status, FILES)
    return intent.wants_files and (files is None or "waiting" in files.get("state", {}))


@dataclass(frozen=True, slots=True)
class Disruption:
    """Something from outside that ends a pod, and since when."""

    reason: Reason
    message: str
    since: datetime | None


DISRUPTIONS = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "EvictionByEvictionAPI": Reason.EVICTED,
    "DeletionByPodGC": Reason.NODE_LOST,
    "TerminationByKubelet": Reason.EVICTED,
}


def disruption(pod: Object) -> Disruption | None:
    """Find what from outside ends this pod: DisruptionTarget, a final reason of the kubelet, or a deletion."""
    status = pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition.get("status") == "True":
            reason = DISRUPTIONS.get(condition.get("reason", ""), Reason.EVICTED)
            message = f"{condition.get('reason')}: {condition.get('message', '')}".rstrip(": ")
            return Disruption(reason, message, moment(condition.get("lastTransitionTime")))
    if found := final_reason(status):
        return found
    deleted = pod["metadata"].get("deletionTimestamp")
    if deleted:
        grace = timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        at = moment(deleted)
        return Disruption(Reason.POD_DELETED, "the pod was deleted while the action ran", at - grace if at else None)
    return None


def final_reason(status: Object) -> Disruption | None:
    """Read `status.reason`, which the kubelet or the node controller writes when it ends a pod."""
    reason = status.get("reason", "")
    message = f"{reason}: {status.get('message', '')}".rstrip(": ")
    if reason == "Evicted":
        return Disruption(Reason.EVICTED, message, None)
    if reason in ("Preempting", "Preempted"):
        return Disruption(Reason.PREEMPTED, message, None)
    if reason == "DeadlineExceeded":
        return Disruption(Reason.DEADLINE_EXCEEDED, "the pod met its own deadline", None)
    if reason in NODE_GONE:
        return Disruption(Reason.NODE_LOST, message, None)
    return None


def gone(pod: Object, action: Object | None, wall: datetime) -> Lost | None:
    """Say whether a pod whose action container has not terminated will never come to an end of its own."""
    status = pod.get("status", {})
    started = runs(action) or bool(action and action.get("started"))
    reason = status.get("reason", "")
    if status.get("phase") in ("Failed", "Succeeded"):
        if reason.startswith(REFUSED_BY_KUBELET):
            text = f"the node refused the pod: {reason}: {status.get('message', '')}"
            return Lost(Reason.UNSCHEDULABLE, text, unstarted=True)
        outside = disruption(pod)
        if outside:
            # A lost node may have started what it could no longer report: no proof.
            unstarted = not started and outside.reason is not Reason.NODE_LOST
            return Lost(outside.reason, outside.message, unstarted)
        if setup_problem(pod):
            return None
        return Lost(Reason.INTERNAL, f"the pod ended without an exit code: {reason or status.get('phase')}")
    if overdue(pod, wall):
        outside = disruption(pod)
        return Lost(
            outside.reason if outside else Reason.POD_DELETED, "the pod was deleted and its node does not answer"
        )
    return None


def setup_problem(pod: Object) -> bool:
    """Whether a container of the set-up ended with a failure, which explains a failed pod."""
    return any(set_up_ended(each, pod) for each in setup_statuses(pod["status"]))


OVERDUE = timedelta(seconds=30)


def overdue(pod: Object, wall: datetime) -> bool:
    """Whether a deletion should long have been carried out."""
    at = moment(pod["metadata"].get("deletionTimestamp"))
    return at is not None and wall > at + OVERDUE


def deletion_recheck(pod: Object, wall: datetime) -> float | None:
    """Return when to look again at a pod that is being deleted."""
    at = moment(pod["metadata"].get("deletionTimestamp"))
    return None if at is None else max(1.0, (at + OVERDUE - wall).total_seconds() + 1)


def set_up_ended(status: Object, pod: Object) -> Observation | None:
    """Judge a container of the set-up that has terminated."""
    terminated = status.get("state", {}).get("terminated")
    if not terminated or terminated.get("exitCode") == 0:
        return None
    name = status["name"]
    if terminated.get("exitCode") in KILLED:
        if name == FILES and runs(container(pod["status"], ACTION)):
            return None  # the commands go on; that their files are lost is said when they have ended
        if outside := disruption(pod):
            return Lost(outside.reason, outside.message, unstarted=name == REPOSITORY)
    message = terminated.get("message", "").strip()
    text = message or f"{terminated.get('reason', 'ended')} with exit code {terminated.get('exitCode')}"
    if name == REPOSITORY:
        return SetupFailed(Reason.REPOSITORY_FAILED, text)
    return SetupFailed(Reason.INTERNAL, f"container {name}: {text}")


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


def waiting(pod: Object, intent: Intent, limits: Limits, history: History, now: float) -> Sight:
    """Judge a pod that is still being set up: every wait has its limit."""
    status = pod.get("status", {})
    if not pod.get("spec", {}).get("nodeName"):
        return unscheduled(status, limits, history, now)
    statuses = [*setup_statuses(status), *([found] if (found := container(status, ACTION)) else [])]
    reasons = {each["name"]: each["state"]["waiting"] for each in statuses if each.get("state", {}).get("waiting")}
    cloning = any(each["name"] == REPOSITORY and runs(each) for each in statuses)
    key, limit = ("clone", limits.clone) if cloning else ("start", limits.start)
    history.keep({key, *(f"{name}/pull" for name in reasons), "secret"})
    rechecks = []
    for name, why in reasons.items():
        sight = stuck(name, why, intent, limits, history, now)
        if isinstance(sight, SetupFailed):
            return Sight(sight)
        rechecks.append(sight)
    age = history.age(key, now)
    detail = "cloning the repository" if cloning else started_detail(reasons)
    if age >= limit:
        reason = Reason.REPOSITORY_FAILED if cloning else Reason.IMAGE_PULL_FAILED
        return Sight(SetupFailed(reason, f"{detail}: not done within {limit:g} s"))
    return Sight(Waiting(detail), min([*(each for each in rechecks if each), limit - age]))


def started_detail(reasons: dict[str, Object]) -> str:
    """Say what containers wait for."""
    for name, why in reasons.items():
        if why.get("reason") in PULLING:
            return f"pulling the image of {name}: {BACK_OFF.sub('', why.get('message', ''))[:300]}"
    return "starting containers"


def stuck(
    name: str, why: Object, intent: Intent, limits: Limits, history: History, now: float
) -> SetupFailed | float | None:
    """Judge one waiting reason: failed, or in how many seconds it will be."""
    reason, message = why.get("reason", ""), why.get("message", "")
    if reason == "CreateContainerConfigError" and f'secret "{intent.secret}" not found' in message:
        age = history.age("secret", now)
        if age < SECRET_WAIT:
            return SECRET_WAIT - age
        return SetupFailed(Reason.INTERNAL, f"the Secret of the action did not appear within {SECRET_WAIT:g} s")
    if reason in PULLING:
        limit = limits.registry_grace if NETWORK.search(message) else limits.pull_grace
        age = history.age(f"{name}/pull", now)
        if age < limit and not hopeless(message):
            return limit - age
        return SetupFailed(Reason.IMAGE_PULL_FAILED, f"the image of {name} cannot be pulled: {message or reason}")
    if reason in NEVER_RAN or "non-root" in message or "runAsNonRoot" in message:
        return cannot_run(message or reason)
    if reason in AT_ONCE:
        return SetupFailed(AT_ONCE[reason], f"container {name}: {reason}: {message}")
    return None


def hopeless(message: str) -> bool:
    """Whether a pull error cannot pass by itself."""
    return "invalid reference format" in message


def unscheduled(status: Object, limits: Limits, history: History, now: float) -> Sight:
    """Judge a pod that has no node yet."""
    message = next(
        (each.get("message", "") for each in status.get("conditions", ()) if each["type"] == "PodScheduled"), ""
    )
    age = history.age("pending", now)
    if age >= limits.pending:
        why = message or "the scheduler of the cluster said nothing"
        return Sight(SetupFailed(Reason.UNSCHEDULABLE, f"no node was found within {limits.pending:g} s: {why}"))
    return Sight(Waiting(f"waiting for a node: {message}" if message else "waiting for a node"), limits.pending - age)


def moment(text: str | None) -> datetime | None:
    """Read a timestamp of the API."""
    return datetime.fromisoformat(text) if text else None


def finished_before(terminated: Object, since: datetime | None) -> bool:
    """Whether a container ended by itself before something from outside could have ended it."""
    finished = moment(terminated.get("finishedAt"))
    return finished is not None and since is not None and finished < since
