"""Turn a pod's status into an observation: what happened to the environment. The functions perform no I/O.

A missing pod is never success, and a missing exit code is never 0. `classify` documents the order of its questions
about the pod. `docs/architecture.md` gives the reasons for this order.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from agent.cluster.in_pod.start_gate import NOT_READY
from agent.cluster.in_pod.workspace import READY as HELPER_READY
from agent.cluster.pod.disruption import deletion_recheck, find_disruption, finished_before, is_overdue
from agent.cluster.pod.fields import (
    container_status,
    helper_status,
    is_running,
    setup_statuses,
    terminated_state,
)
from agent.cluster.pod.manifest import ACTION, HELPER, REPOSITORY
from agent.cluster.pod.services.status import (
    failed_before,
    failed_services,
    judge_ended_services,
    judge_health,
    waits_for_containers,
)
from agent.cluster.pod.setup_status import (
    NEVER_RAN,
    Expectations,
    FirstSeen,
    Judgement,
    SetupJudge,
    SetupLimits,
    cannot_run,
)
from agent.cluster.supervisor import termination
from agent.domain.errors import Reason
from agent.domain.json import Object
from agent.domain.observations import Exited, Lost, Observation, Running, SetupFailed

if TYPE_CHECKING:
    from agent.cluster.pod.disruption import Disruption
    from agent.cluster.supervisor.termination import Ending, Verdict


# Reasons of a terminated container whose exit code is unknown. The kubelet writes the first reason. containerd writes
# the second reason for a container that ended while containerd was down (measured: with exit code 255).
UNKNOWN_END = ("ContainerStatusUnknown", "Unknown")
REFUSED_BY_KUBELET = ("OutOf", "NodeAffinity", "UnexpectedAdmissionError", "Outof", "PodOS", "InvalidNodeInfo")
REJECTED = "Pod was rejected"
OUT_OF_MEMORY = "OOMKilled"
FINAL_PHASES = ("Failed", "Succeeded")
# Exit codes of a process that KILL or TERM has ended.
KILLED = (137, 143)
# Seconds to wait for the pod's own final status after its containers ended. Usually 1 second passes.
POD_STATUS_WAIT_SECONDS = 10.0
# Exit codes of a helper that TERM has ended.
ENDED_BY_TERM = (0, 143)
# Seconds to wait for a reason in the pod's status, such as an eviction, after container `helper` ended.
# `HELPER_TERM_WAIT_SECONDS` applies if TERM ended the helper, because the commands may use the pod's grace period.
HELPER_WAIT_SECONDS = 3.0
HELPER_TERM_WAIT_SECONDS = 60.0


def classify(
    pod: Object | None,
    expectations: Expectations,
    limits: SetupLimits,
    first_seen: FirstSeen,
    now: float,
    wall: datetime,
    last: Object | None = None,
) -> Judgement:
    """Judge the state of a pod. The first question that is answered with yes decides:

    1. Is the pod missing? Its last known state decides.
    2. Has the action container terminated? Its own end decides the result. Later events on the pod only decide whether
       the files can still be copied. If the kubelet may be evicting the pod, the agent first waits for the final status
       of the pod.
    3. Can the action container no longer terminate by itself (final pod phase, overdue deletion)? The pod is lost.
    4. Has container `helper` ended while the commands run? The pod is lost, because nothing reads their output.
    5. Has a container of the set-up failed? The set-up has failed.
    6. Has a service failed? The set-up has failed, or the commands must be stopped.
    7. Does the action container run, and does its supervisor no longer wait for the helper? The commands run.
    8. Otherwise the pod is being set up, within the limits.

    Args:
        pod: the pod in the latest event; None if the API reports it deleted.
        last: the last known state of a deleted pod; None if the agent missed the deletion event.
        now: monotonic seconds, from which the ages of the states in `first_seen` are computed.
        wall: the cluster's time as far as known. It is only compared with deletion timestamps.
    """
    if pod is None:
        return Judgement(judge_deleted(last, expectations))
    status = pod.get("status", {})
    action = container_status(status, ACTION)
    if terminated := terminated_state(action):
        waits = awaits_pod_status(pod, terminated, expectations)
        if waits and first_seen.age("ended", now) < POD_STATUS_WAIT_SECONDS:
            detail = "the node has not yet reported why the pod ends"
            return Judgement(Running(detail), recheck=POD_STATUS_WAIT_SECONDS)
        return Judgement(judge_terminated(pod, terminated, expectations))
    if lost := judge_lost(pod, action, wall):
        return Judgement(lost)
    if is_running(action) and (helper := ended_helper(status)):
        return judge_ended_helper(pod, helper, first_seen, now, wall)
    for each in setup_statuses(status):
        if failed := judge_setup_container(each, pod):
            return Judgement(failed)
    ended_service = judge_ended_services(pod, expectations, first_seen, now)
    if isinstance(ended_service, (SetupFailed, Running)):
        return Judgement(ended_service, recheck=deletion_recheck(pod, wall))
    judgement = Judgement(Running())
    if not is_running(action) or waits_for_helper(status) or waits_for_containers(pod, expectations):
        judgement = SetupJudge(expectations, limits, first_seen, now).judge(pod)
    elif health := judge_health(pod, expectations, limits, first_seen, now):
        judgement = Judgement(*health)
    rechecks = (judgement.recheck, ended_service, deletion_recheck(pod, wall))
    return Judgement(judgement.observation, min((each for each in rechecks if each is not None), default=None))


def judge_deleted(last: Object | None, expectations: Expectations) -> Observation:
    """Judge a deleted pod by its last known state."""
    if last is None:
        return Lost(Reason.POD_DELETED, "the pod was deleted while the action ran")
    outside = find_disruption(last)
    if not last["spec"].get("nodeName"):
        reason = outside.reason if outside else Reason.POD_DELETED
        return Lost(reason, "the pod was deleted before it had a node", unstarted=True)
    action = container_status(last.get("status", {}), ACTION)
    if terminated := terminated_state(action):
        return judge_terminated(last, terminated, expectations)
    if outside is None:
        return Lost(Reason.POD_DELETED, "the pod was deleted while the action ran")
    return Lost(outside.reason, outside.message, is_final(last) and never_started(action, outside.reason))


def is_final(pod: Object) -> bool:
    """Whether the pod's phase is final, after which the kubelet no longer changes its status."""
    return pod.get("status", {}).get("phase") in FINAL_PHASES


def never_started(action: Object | None, reason: Reason) -> bool:
    """Whether the final status of the action container proves that the container never started.

    The kubelet writes a reason of `UNKNOWN_END`, without a container id, for a container that it never created. The
    status on a lost node proves nothing, because the node may have started the container and could not report the
    start.
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


# ---- the action container has terminated


def judge_terminated(pod: Object, terminated: Object, expectations: Expectations) -> Observation:
    """Judge an action container that has terminated, first by the kubelet's report, then by the supervisor's record."""
    found = judge_kubelet_report(pod, terminated) or judge_record(pod, terminated, expectations)
    return failed_before(found, pod, terminated, expectations) if isinstance(found, Exited) else found


def judge_kubelet_report(pod: Object, terminated: Object) -> Observation | None:
    """Return the loss or failure that the kubelet reports; None if the container ran and its exit code is known."""
    reason, message = terminated.get("reason", ""), terminated.get("message", "")
    if "exitCode" not in terminated or reason in UNKNOWN_END:
        if outside := find_disruption(pod):
            unstarted = is_final(pod) and never_started(container_status(pod["status"], ACTION), outside.reason)
            return Lost(outside.reason, outside.message, unstarted)
        return Lost(Reason.NODE_LOST, f"the node lost sight of the container: {reason} {message}".strip())
    if reason in NEVER_RAN:
        return cannot_run(message or reason)
    return None


def judge_record(pod: Object, terminated: Object, expectations: Expectations) -> Observation:
    """Return the result of a container that ran, from its exit code and the record that its PID 1
    (the supervisor) wrote into the termination message.
    """
    code, message = terminated["exitCode"], terminated.get("message", "")
    ending = termination.read_termination(message, expectations.nonce)
    verdict = termination.judge(code, ending, expectations.commands)
    outside = find_disruption(pod)
    if outside and was_cut_short(terminated, ending, verdict, outside):
        return Lost(outside.reason, outside.message)
    files, lost = files_availability(pod, expectations)
    if verdict.succeeded:
        return Exited(code, verdict.command, None, verdict.message, files, lost)
    if terminated.get("reason") == OUT_OF_MEMORY and code != 0:
        command = f" in command {verdict.command}" if verdict.command else ""
        text = f"killed for memory{command} (exit code {code}): the limit is too low for it"
        return Exited(code, verdict.command, Reason.OUT_OF_MEMORY, text, files, lost)
    if ending is None:
        text = f"the image's /bin/sh ended with exit code {code} before the first command"
        if code == termination.REFUSED and message:
            text = message.strip()
        return SetupFailed(Reason.INVALID_CONFIGURATION, text, message)
    return Exited(code, verdict.command, Reason.COMMAND_FAILED, verdict.message, files, lost)


def awaits_pod_status(pod: Object, terminated: Object, expectations: Expectations) -> bool:
    """Whether the kubelet may be evicting the pod and has not reported the eviction yet.

    The kubelet reports the end of each container before it reports the eviction. The supervisor's record shows whether
    PID 1 received TERM or was killed. Container `helper` ends only with its pod.
    """
    if is_final(pod) or find_disruption(pod):
        return False
    helper_ended = terminated_state(helper_status(pod["status"])) is not None
    if expectations.interrupted:
        # The agent itself sent TERM, and its reason counts. A service may have failed because the whole pod ends.
        return helper_ended and any(failed_services(pod, expectations))
    ending = termination.read_termination(terminated.get("message", ""), expectations.nonce)
    if ending and ending.completed:
        return False
    return helper_ended or was_signalled(terminated, ending)


def was_signalled(terminated: Object, ending: Ending | None) -> bool:
    """Whether PID 1 received TERM, or was killed for another reason than memory. A command cannot cause either."""
    if ending and ending.received_term:
        return True
    killed = ending.exit_code is None if ending else terminated.get("exitCode") in KILLED
    return killed and terminated.get("reason") != OUT_OF_MEMORY


def was_cut_short(terminated: Object, ending: Ending | None, verdict: Verdict, outside: Disruption) -> bool:
    """Whether the disruption may have ended the commands, whatever exit code the commands ended with after TERM."""
    # When a kubelet evicts a pod, it writes the condition DisruptionTarget after the containers have ended. The time of
    # this condition is therefore too late.
    if finished_before(terminated, outside.since) and not was_signalled(terminated, ending):
        return False
    if not verdict.succeeded:
        return True
    # A server exits with 0 on TERM, so exit code 0 proves success only if all commands ran.
    return not (ending is not None and ending.completed)


def files_availability(pod: Object, expectations: Expectations) -> tuple[bool, str]:
    """Return whether files can be copied now, and if not, why. The reason is "" if the action wants no files copied."""
    if not expectations.wants_files:
        return False, ""
    if pod["metadata"].get("deletionTimestamp"):
        return False, "the pod is being deleted"
    if is_running(helper_status(pod.get("status", {}))):
        return True, ""
    return False, pod.get("status", {}).get("reason") or "container helper has ended"


# ---- the action container has not terminated


def waits_for_helper(status: Object) -> bool:
    """Whether container `helper` has not started yet. Without the helper, PID 1 of `action` runs no command.

    The result is False for a pod without a helper, which version 0.1 of the agent created for an action without files.
    """
    return "waiting" in (helper_status(status) or {}).get("state", {})


def judge_lost(pod: Object, action: Object | None, wall: datetime) -> Lost | None:
    """Return the loss of a pod whose action container has not terminated and never will; None otherwise."""
    if is_final(pod):
        return judge_final_phase(pod, action)
    if is_overdue(pod, wall):
        outside = find_disruption(pod)
        reason = outside.reason if outside else Reason.POD_DELETED
        return Lost(reason, "the pod was deleted, and its node does not carry that out")
    return None


def judge_final_phase(pod: Object, action: Object | None) -> Lost | None:
    """Return why a pod in a final phase is lost; None if the failure of a set-up container explains the phase."""
    status = pod.get("status", {})
    reason, message = status.get("reason", ""), status.get("message", "")
    outside = find_disruption(pod)
    if reason.startswith(REFUSED_BY_KUBELET) or message.startswith(REJECTED):
        text = f"the node refused the pod: {reason}: {message}"
        return Lost(outside.reason if outside else Reason.UNSCHEDULABLE, text, unstarted=True)
    if outside:
        return Lost(outside.reason, outside.message, never_started(action, outside.reason))
    if any(judge_setup_container(each, pod) for each in setup_statuses(status)):
        return None
    return Lost(Reason.INTERNAL, f"the pod ended without an exit code: {reason or status.get('phase')}")


def ended_helper(status: Object) -> Object | None:
    """Return `state.terminated` of a helper that has ended, if the commands have possibly begun; None otherwise."""
    ended = terminated_state(container_status(status, HELPER))
    began = ended is not None and (ended.get("exitCode") == 0 or HELPER_READY in ended.get("message", ""))
    return ended if began else None


def judge_ended_helper(pod: Object, ended: Object, first_seen: FirstSeen, now: float, wall: datetime) -> Judgement:
    """Judge a pod whose helper has ended while the commands run.

    Without the helper, the commands would block for ever when they write output. The end of the whole pod ends the
    helper too, so the agent first waits for the status of the pod. A helper that got TERM may be much faster than the
    commands.
    """
    if pod["metadata"].get("deletionTimestamp") or find_disruption(pod):
        return Judgement(Running("the pod ends"), recheck=deletion_recheck(pod, wall))
    code = ended.get("exitCode")
    wait = HELPER_TERM_WAIT_SECONDS if code in ENDED_BY_TERM else HELPER_WAIT_SECONDS
    if first_seen.age("helper ended", now) < wait:
        return Judgement(Running("container helper has ended"), recheck=wait)
    how = "was killed for memory" if ended.get("reason") == OUT_OF_MEMORY else f"ended with exit code {code}"
    text = f"container helper {how} while the commands ran, so nothing could read their output"
    return Judgement(Lost(Reason.INTERNAL, text))


def judge_setup_container(status: Object, pod: Object) -> Observation | None:
    """Return the failure of a container of the set-up; None if the container has not failed."""
    terminated = terminated_state(status)
    if not terminated or terminated.get("exitCode") == 0:
        return None
    name = status["name"]
    if terminated.get("exitCode") in KILLED:
        ready = name != REPOSITORY and HELPER_READY in terminated.get("message", "")
        if ready and is_running(container_status(pod["status"], ACTION)):
            # If a helper that was ready ends, the set-up has not failed. In a pod of an older release, the commands do
            # not need the helper.
            return None
        if outside := find_disruption(pod):
            return Lost(outside.reason, outside.message, unstarted=name == REPOSITORY)
    message = terminated.get("message", "").strip()
    text = message or f"{terminated.get('reason', 'ended')} with exit code {terminated.get('exitCode')}"
    if name == REPOSITORY:
        return SetupFailed(Reason.REPOSITORY_FAILED, text)
    if terminated.get("exitCode") == NOT_READY:
        return SetupFailed(Reason.SERVICE_FAILED, text)
    return SetupFailed(Reason.INTERNAL, f"container {name}: {text}")
