"""Find what ended a pod from outside: a drain of its node, a preemption, a full node, a deletion.

The functions have no side effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from agent.cluster.pod.fields import parse_timestamp
from agent.domain.errors import Reason
from agent.domain.json import Object

# Time after which a deletion that the node has not carried out makes the pod lost.
OVERDUE = timedelta(seconds=30)
# Time after which an unfinished deletion makes the pod lost if the cluster already reports the node as lost.
OVERDUE_ON_LOST_NODE = timedelta(seconds=10)
NODE_GONE = ("NodeLost", "NodeShutdown", "Shutdown", "Terminated")


@dataclass(frozen=True, slots=True)
class Disruption:
    """An event outside the pod that ends the pod. `since` is its time by the cluster's clock, None if it is unknown."""

    reason: Reason
    message: str
    since: datetime | None


# Reasons of the pod condition DisruptionTarget, each with the agent's reason for the lost action.
DISRUPTIONS = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "DeletionByTaintManager": Reason.NODE_LOST,
    "EvictionByEvictionAPI": Reason.EVICTED,
    "DeletionByPodGC": Reason.NODE_LOST,
    "TerminationByKubelet": Reason.EVICTED,
}


def find_disruption(pod: Object) -> Disruption | None:
    """Return the disruption of a pod; None if there is none.

    The condition DisruptionTarget is the most precise source. `status.reason` comes second, a deletion last.
    """
    status = pod.get("status", {})
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition.get("status") == "True":
            reason = DISRUPTIONS.get(condition.get("reason", ""), Reason.EVICTED)
            message = f"{condition.get('reason')}: {condition.get('message', '')}".rstrip(": ")
            return Disruption(reason, message, parse_timestamp(condition.get("lastTransitionTime")))
    if found := from_status_reason(status):
        return found
    deleted = pod["metadata"].get("deletionTimestamp")
    if deleted:
        # The API server sets deletionTimestamp to the end of the grace period.
        grace = timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        at = parse_timestamp(deleted)
        return Disruption(Reason.POD_DELETED, "the pod was deleted while the action ran", at - grace if at else None)
    return None


def from_status_reason(status: Object) -> Disruption | None:
    """Return the disruption that `status.reason` names, None if it names none.

    The kubelet or the node controller writes `status.reason` when it ends a pod.
    """
    reason = status.get("reason", "")
    message = f"{reason}: {status.get('message', '')}".rstrip(": ")
    if reason == "Evicted":
        return Disruption(Reason.EVICTED, message, None)
    if reason in ("Preempting", "Preempted"):
        return Disruption(Reason.PREEMPTED, message, None)
    if reason == "DeadlineExceeded":
        return Disruption(Reason.DEADLINE_EXCEEDED, "the pod reached its activeDeadlineSeconds", None)
    if reason in NODE_GONE:
        return Disruption(Reason.NODE_LOST, message, None)
    return None


def finished_before(terminated: Object, since: datetime | None) -> bool:
    """Whether a container finished before `since`; False if either time is unknown."""
    finished = parse_timestamp(terminated.get("finishedAt"))
    return finished is not None and since is not None and finished < since


# ---- a deletion that is not carried out


def deletion_deadline(pod: Object) -> datetime | None:
    """Return the time after which a deletion counts as not carried out; None if the pod is not being deleted."""
    at = parse_timestamp(pod["metadata"].get("deletionTimestamp"))
    if at is None:
        return None
    outside = find_disruption(pod)
    node_lost = outside is not None and outside.reason is Reason.NODE_LOST
    return at + (OVERDUE_ON_LOST_NODE if node_lost else OVERDUE)


def is_overdue(pod: Object, wall: datetime) -> bool:
    at = deletion_deadline(pod)
    return at is not None and wall > at


def deletion_recheck(pod: Object, wall: datetime) -> float | None:
    """Return the seconds until a deletion is overdue, at least 1; None if the pod is not being deleted."""
    at = deletion_deadline(pod)
    return None if at is None else max(1.0, (at - wall).total_seconds() + 1)
