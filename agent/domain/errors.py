"""What can go wrong, by who is told.

    AgentError
    ├── ActionFailed          the scheduler: this action ends, with a reason from one enum
    ├── ClusterError          the cluster did not do what was asked; `retryable` says if asking again can help
    ├── SchedulerError        the stream broke; the agent reconnects
    │   └── Refused           the scheduler does not want this agent
    └── SettingsError         the installer: a setting is wrong

Errors of clients (Kubernetes, gRPC) are wrapped at the edge with `from` and never travel further. Cancellation is no
error: it stays `asyncio.CancelledError`. The enums live here because everything else speaks in them; they equal the
enums of the contract (`tests/unit/protocol/test_translate.py` holds them equal) and the label values of the metrics.
"""

from __future__ import annotations

from enum import Enum


class Stage(Enum):
    """Where in its life a session is."""

    ADMISSION = "admission"
    SETUP = "setup"
    COMMANDS = "commands"
    ARTIFACTS = "artifacts"


class Reason(Enum):
    """Why an attempt did not succeed; the value is its name on the wire, in metrics and in JSON."""

    COMMAND_FAILED = "COMMAND_FAILED"
    INVALID_CONFIGURATION = "INVALID_CONFIGURATION"
    IMAGE_PULL_FAILED = "IMAGE_PULL_FAILED"
    REPOSITORY_FAILED = "REPOSITORY_FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    ARTIFACTS_FAILED = "ARTIFACTS_FAILED"
    UNSCHEDULABLE = "UNSCHEDULABLE"
    EVICTED = "EVICTED"
    PREEMPTED = "PREEMPTED"
    NODE_LOST = "NODE_LOST"
    POD_DELETED = "POD_DELETED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    CLUSTER_UNAVAILABLE = "CLUSTER_UNAVAILABLE"
    INTERNAL = "INTERNAL"

    @property
    def infrastructure(self) -> bool:
        """Whether the fault is the infrastructure's rather than the user's."""
        return self in INFRASTRUCTURE


INFRASTRUCTURE = frozenset(
    {
        Reason.UNSCHEDULABLE,
        Reason.EVICTED,
        Reason.PREEMPTED,
        Reason.NODE_LOST,
        Reason.POD_DELETED,
        Reason.QUOTA_EXCEEDED,
        Reason.CLUSTER_UNAVAILABLE,
        Reason.INTERNAL,
    }
)


class Rejection(Enum):
    """Why an action is not taken here, although another agent could."""

    NO_SLOT = "no_slot"
    DRAINING = "draining"
    CLUSTER_UNAVAILABLE = "cluster_unavailable"


class AgentError(Exception):
    """Root of all errors of the agent."""


class ActionFailed(AgentError):
    """The action ends here.

    `message` is one sentence for people; `log` the longer text for the set-up log, empty when the message says all.
    """

    def __init__(self, stage: Stage, reason: Reason, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.message = message
        self.log = log


class ClusterError(AgentError):
    """A request to the cluster failed.

    `reason` is what an action that cannot go on without it fails with; `retryable` whether asking again can help;
    `retry_after` the server's wish in seconds; `status` the HTTP status, 0 when there was no answer.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: Reason = Reason.CLUSTER_UNAVAILABLE,
        retryable: bool = False,
        retry_after: float | None = None,
        status: int = 0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.retryable = retryable
        self.retry_after = retry_after
        self.status = status


class SchedulerError(AgentError):
    """The stream to the scheduler could not be opened or broke."""


class Refused(SchedulerError):
    """The scheduler does not want this agent; `permanent` when only another version of it helps."""

    def __init__(self, message: str, *, permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.retry_after = retry_after


class SettingsError(AgentError):
    """A setting is wrong; the message names the key and what is allowed."""
