"""What happened to an environment: pure functions from a pod's status to an observation.

The order is DESIGN section 6. The action container's own termination comes first: it ended, and whatever befell the pod
later only decides whether its files could be had. A missing pod is never success, a missing exit code never 0.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from agent.cluster.in_pod.workspace import READY as FILES_READY
from agent.cluster.pod.disruption import disruption, finished_before
from agent.cluster.pod.fields import container_status, is_running, setup_statuses
from agent.cluster.pod.manifest import ACTION, FILES, REPOSITORY
from agent.cluster.pod.setup_status import (
    NEVER_RAN,
    Expectations,
    FirstSeen,
    Judgement,
    SetupLimits,
    cannot_run,
    waiting,
)
from agent.cluster.pod.timestamps import parse_timestamp
from agent.cluster.supervisor import termination
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Exited, Lost, Observation, Running, SetupFailed

if TYPE_CHECKING:
    from agent.cluster.pod.disruption import Disruption
    from agent.cluster.supervisor.termination import Ending, Verdict


# The kubelet's word, and containerd's for what ended while it was away (measured: with exit code 255).
UNKNOWN_END = ("ContainerStatusUnknown", "Unknown")
REFUSED_BY_KUBELET = ("OutOf", "NodeAffinity", "UnexpectedAdmissionError", "Outof", "PodOS", "InvalidNodeInfo")
REJECTED = "Pod was rejected"
OUT_OF_MEMORY = "OOMKilled"
FINAL_PHASES = ("Failed", "Succeeded")
# So long the kubelet's word about a pod may come after that about its containers, seconds; a second is usual.
POD_STATUS_WAIT_SECONDS = 10.0


def classify(
    pod: Object | None,
    expectations: Expectations,
    limits: SetupLimits,
    first_seen: FirstSeen,
    now: float,
    wall: datetime,
    last: Object | None = None,
) -> Judgement:
    """Say what a pod's status means.

    Args:
        pod: as the API last said; None when the API says it is gone.
        last: the state in which a pod went that is gone; None when nobody saw it go.
        now: monotonic seconds, for `first_seen`.
        wall: the cluster's time as far as known, only held against deletion timestamps.
    """
    if pod is None:
        return Judgement(departed(last, expectations))
    status = pod.get("status", {})
    action = container_status(status, ACTION)
    if terminated := (action or {}).get("state", {}).get("terminated"):
        if unexplained(pod, terminated, expectations) and first_seen.age("ended", now) < POD_STATUS_WAIT_SECONDS:
            return Judgement(Running("the node has yet to say why the pod ends"), recheck=POD_STATUS_WAIT_SECONDS)
        return Judgement(ended(pod, terminated, expectations))
    lost = gone(pod, action, wall)
    if lost:
        return Judgement(lost)
    for each in setup_statuses(status):
        if failed := set_up_ended(each, pod):
            return Judgement(failed)
    if is_running(action) and not files_missing(status, expectations):
        return Judgement(Running(), recheck=deletion_recheck(pod, wall))
    judgement = waiting(pod, expectations, limits, first_seen, now)
    rechecks = [each for each in (judgement.recheck, deletion_recheck(pod, wall)) if each is not None]
    return Judgement(judgement.observation, min(rechecks, default=None))


def departed(last: Object | None, expectations: Expectations) -> Observation:
    """Judge a pod that is gone by the state in which it went, if that was seen."""
    if last is None:
        return Lost(Reason.POD_DELETED, "the pod was deleted while the action ran")
    if not last["spec"].get("nodeName"):
        why = disruption(last)
        reason = why.reason if why else Reason.POD_DELETED
        return Lost(reason, "the pod was deleted before it had a node", unstarted=True)
    action = container_status(last.get("status", {}), ACTION)
    if terminated := (action or {}).get("state", {}).get("terminated"):
        return ended(last, terminated, expectations)
    why = disruption(last)
    if why is None:
        return Lost(Reason.POD_DELETED, "the pod was deleted while the action ran")
    return Lost(why.reason, why.message, final(last) and unstarted(action, why.reason))


def final(pod: Object) -> bool:
    """Whether the kubelet has said its last word about a pod."""
    return pod.get("status", {}).get("phase") in FINAL_PHASES


def unstarted(action: Object | None, reason: Reason) -> bool:
    """Whether the final status of the action container proves that it never started.

    The kubelet writes an end of unknown kind, without a container, over a container that it never made. A lost node
    may have started what it could no longer report: no proof.
    """
    if reason is Reason.NODE_LOST:
        return False
    status = action or {}
    if is_running(status) or status.get("started") or status.get("containerID") or status.get("lastState"):
        return False
    terminated = status.get("state", {}).get("terminated", {})
    return not terminated or (
        terminated.get("reason") in UNKNOWN_END
        and not terminated.get("containerID")
        and not terminated.get("startedAt")
    )


def ended(pod: Object, terminated: Object, expectations: Expectations) -> Observation:
    """Judge an action container that has terminated."""
    reason, message = terminated.get("reason", ""), terminated.get("message", "")
    outside = disruption(pod)
    if "exitCode" not in terminated or reason in UNKNOWN_END:
        if outside:
            never = final(pod) and unstarted(container_status(pod["status"], ACTION), outside.reason)
            return Lost(outside.reason, outside.message, never)
        return Lost(Reason.NODE_LOST, f"the node lost sight of the container: {reason} {message}".strip())
    if reason in NEVER_RAN:
        return cannot_run(message or reason)
    code = terminated["exitCode"]
    files, lost = files_state(pod, expectations)
    ending = termination.read_termination(message, expectations.nonce)
    verdict = termination.judge(code, ending, expectations.commands)
    if outside and cut_short(terminated, ending, verdict, outside):
        return Lost(outside.reason, outside.message)
    if verdict.succeeded:
        return Exited(code, verdict.command, None, verdict.message, files, lost)
    if reason == OUT_OF_MEMORY and code != 0:
        text = f"killed for memory{in_command(verdict.command)} (exit code {code}): the limit is too low for it"
        return Exited(code, verdict.command, Reason.OUT_OF_MEMORY, text, files, lost)
    if ending is None:
        text = f"the image's /bin/sh ended with exit code {code} before the first command"
        if code == termination.WORKSPACE_FAILED and message:
            text = message.strip()
        return SetupFailed(Reason.INVALID_CONFIGURATION, text, message)
    return Exited(code, verdict.command, Reason.COMMAND_FAILED, verdict.message, files, lost)


def unexplained(pod: Object, terminated: Object, expectations: Expectations) -> bool:
    """Whether the kubelet may be ending the pod and has not said so yet.

    It tells that containers have ended, one after the other, before it tells that it evicts their pod. The supervisor's
    record tells whether it was told to end, or killed; the container `files` ends by itself only with its pod.
    """
    if expectations.interrupted or final(pod) or disruption(pod):
        return False
    ending = termination.read_termination(terminated.get("message", ""), expectations.nonce)
    if ending and ending.completed:
        return False
    if expectations.wants_files and "terminated" in (container_status(pod["status"], FILES) or {}).get("state", {}):
        return True
    return from_outside(terminated, ending)


def from_outside(terminated: Object, ending: Ending | None) -> bool:
    """Whether PID 1 was told to end, or killed for something else than its memory: no command does that by its end."""
    if ending and ending.received_term:
        return True
    killed = ending.exit_code is None if ending else terminated.get("exitCode") in KILLED
    return killed and terminated.get("reason") != OUT_OF_MEMORY


def cut_short(terminated: Object, ending: Ending | None, verdict: Verdict, outside: Disruption) -> bool:
    """Whether something from outside may have ended the commands, whatever code their answer to TERM was."""
    # An evicting kubelet dates its word when it writes it, which is after the end that it brought about.
    if finished_before(terminated, outside.since) and not from_outside(terminated, ending):
        return False
    if not verdict.succeeded:
        return True
    # A server leaves with 0 when it is told to.
    return not (ending is not None and ending.completed)


def in_command(command: int) -> str:
    """Name a command, if one is known."""
    return f" in command {command}" if command else ""


def files_state(pod: Object, expectations: Expectations) -> tuple[bool, str]:
    """Say whether files can be copied now, and why not."""
    if not expectations.wants_files:
        return False, ""
    if pod["metadata"].get("deletionTimestamp"):
        return False, "the pod is being deleted"
    files = container_status(pod.get("status", {}), FILES)
    if files and files.get("state", {}).get("running"):
        return True, ""
    return False, pod.get("status", {}).get("reason") or "the files container has ended"


def files_missing(status: Object, expectations: Expectations) -> bool:
    """Whether the supervisor still waits for the files container: no command has run then."""
    files = container_status(status, FILES)
    return expectations.wants_files and (files is None or "waiting" in files.get("state", {}))


def gone(pod: Object, action: Object | None, wall: datetime) -> Lost | None:
    """Say whether a pod whose action container has not terminated will never come to an end of its own."""
    status = pod.get("status", {})
    reason = status.get("reason", "")
    if final(pod):
        outside = disruption(pod)
        if reason.startswith(REFUSED_BY_KUBELET) or status.get("message", "").startswith(REJECTED):
            text = f"the node refused the pod: {reason}: {status.get('message', '')}"
            return Lost(outside.reason if outside else Reason.UNSCHEDULABLE, text, unstarted=True)
        if outside:
            return Lost(outside.reason, outside.message, unstarted(action, outside.reason))
        if setup_problem(pod):
            return None
        return Lost(Reason.INTERNAL, f"the pod ended without an exit code: {reason or status.get('phase')}")
    if overdue(pod, wall):
        outside = disruption(pod)
        reason = outside.reason if outside else Reason.POD_DELETED
        return Lost(reason, "the pod was deleted, and its node does not carry that out")
    return None


def setup_problem(pod: Object) -> bool:
    """Whether a container of the set-up ended with a failure, which explains a failed pod."""
    return any(set_up_ended(each, pod) for each in setup_statuses(pod["status"]))


OVERDUE = timedelta(seconds=30)
# The cluster knows already that the node does not answer.
OVERDUE_ON_LOST_NODE = timedelta(seconds=10)
KILLED = (137, 143)


def due(pod: Object) -> datetime | None:
    """Return when a deletion should long have been carried out; None when there is none."""
    at = parse_timestamp(pod["metadata"].get("deletionTimestamp"))
    if at is None:
        return None
    outside = disruption(pod)
    lost = outside is not None and outside.reason is Reason.NODE_LOST
    return at + (OVERDUE_ON_LOST_NODE if lost else OVERDUE)


def overdue(pod: Object, wall: datetime) -> bool:
    """Whether a deletion should long have been carried out."""
    at = due(pod)
    return at is not None and wall > at


def deletion_recheck(pod: Object, wall: datetime) -> float | None:
    """Return when to look again at a pod that is being deleted."""
    at = due(pod)
    return None if at is None else max(1.0, (at - wall).total_seconds() + 1)


def set_up_ended(status: Object, pod: Object) -> Observation | None:
    """Judge a container of the set-up that has terminated."""
    terminated = status.get("state", {}).get("terminated")
    if not terminated or terminated.get("exitCode") == 0:
        return None
    name = status["name"]
    if terminated.get("exitCode") in KILLED:
        if (
            name == FILES
            and FILES_READY in terminated.get("message", "")
            and is_running(container_status(pod["status"], ACTION))
        ):
            return None  # the commands go on; that their files are lost is said when they have ended
        if outside := disruption(pod):
            return Lost(outside.reason, outside.message, unstarted=name == REPOSITORY)
    message = terminated.get("message", "").strip()
    text = message or f"{terminated.get('reason', 'ended')} with exit code {terminated.get('exitCode')}"
    if name == REPOSITORY:
        return SetupFailed(Reason.REPOSITORY_FAILED, text)
    return SetupFailed(Reason.INTERNAL, f"container {name}: {text}")
