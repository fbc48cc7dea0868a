"""The errors of the agent, and the enums that an outcome is made of.

    AgentError
    ├── ActionFailed          the action ends; the scheduler gets the stage, the reason and the message
    ├── ClusterError          a request to the API server failed; `retryable`: another try can succeed
    ├── SchedulerError        the stream to the scheduler broke; the agent reconnects
    │   ├── InputMissing      the scheduler no longer stores a file that the action needs
    │   └── Refused           the scheduler does not accept this agent
    └── SettingsError         a setting is wrong; the installer gets the message
        └── NoCluster         nothing names a cluster

Each package adds errors of its own below `AgentError`. The package that calls a client library (Kubernetes, gRPC) wraps
the library's errors with `raise ... from`. Cancellation is no error and stays `asyncio.CancelledError`.
The values of the enums equal the contract's names (`tests/unit/protocol/test_translate.py`) and the metrics' labels.
"""

from __future__ import annotations

from enum import Enum


class Stage(Enum):
    """The stages of a session: check of the action, set-up of the pod, run of the commands, copy of artifacts."""

    ADMISSION = "admission"
    SETUP = "setup"
    COMMANDS = "commands"
    ARTIFACTS = "artifacts"


class Reason(Enum):
    """Why an attempt did not succeed. The value is the name in metrics and in JSON output.

    The contract uses the same names, except CANCELLED_BY_REQUEST for `CANCELLED`.
    """

    # The reasons below are the user's fault: the action has to change.
    COMMAND_FAILED = "COMMAND_FAILED"
    INVALID_CONFIGURATION = "INVALID_CONFIGURATION"
    IMAGE_PULL_FAILED = "IMAGE_PULL_FAILED"
    REPOSITORY_FAILED = "REPOSITORY_FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    ARTIFACTS_FAILED = "ARTIFACTS_FAILED"
    INPUT_MISSING = "INPUT_MISSING"
    SERVICE_FAILED = "SERVICE_FAILED"
    # The reasons below are the infrastructure's fault: another attempt can succeed without a change of the action.
    UNSCHEDULABLE = "UNSCHEDULABLE"
    EVICTED = "EVICTED"
    PREEMPTED = "PREEMPTED"
    NODE_LOST = "NODE_LOST"
    POD_DELETED = "POD_DELETED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    CLUSTER_UNAVAILABLE = "CLUSTER_UNAVAILABLE"
    INTERNAL = "INTERNAL"
    OBJECT_STORE_UNAVAILABLE = "OBJECT_STORE_UNAVAILABLE"

    @property
    def infrastructure(self) -> bool:
        """Whether the infrastructure is at fault. Another attempt can then succeed without a change of the action."""
        return self in INFRASTRUCTURE

    @property
    def fault(self) -> str:
        """The party that caused the failure: "user" or "infrastructure". "" for a cancelled action."""
        if self is Reason.CANCELLED:
            return ""
        return "infrastructure" if self.infrastructure else "user"


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
        Reason.OBJECT_STORE_UNAVAILABLE,
    }
)


class Rejection(Enum):
    """Why an agent does not start an action now. The scheduler sends the action to another agent."""

    NO_SLOT = "no_slot"
    DRAINING = "draining"
    CLUSTER_UNAVAILABLE = "cluster_unavailable"


class AgentError(Exception):
    """The base class of all errors of the agent."""


class ActionFailed(AgentError):
    """Raised to end the action as failed. The outcome gets the stage and the reason of this error.

    `message` is one sentence for the user. `log` is a longer text for the action's log, "" for none.
    """

    def __init__(self, stage: Stage, reason: Reason, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.stage = stage
        self.reason = reason
        self.message = message
        self.log = log


class ClusterError(AgentError):
    """A request to the cluster failed.

    If an action fails because of this error, `reason` is the reason of its outcome. `retryable`: another try can
    succeed. `retry_after` is the pause in seconds that the API server asks for. `status` is the HTTP status, 0 for no
    answer. `has_advice`: the message ends with what a person can change.
    """

    def __init__(
        self,
        message: str,
        *,
        has_advice: bool = False,
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
        self.has_advice = has_advice


class SchedulerError(AgentError):
    """The stream to the scheduler cannot be opened, or it broke."""


class InputMissing(SchedulerError):
    """The scheduler no longer stores a file of an input. The message names the file."""


class Refused(SchedulerError):
    """The scheduler does not accept this agent.

    `permanent`: only another version of the agent can be accepted. `retry_after` is the pause in seconds that the
    scheduler asks for.
    """

    def __init__(self, message: str, *, permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.retry_after = retry_after


class SettingsError(AgentError):
    """A setting is wrong. The message names the key and what is allowed."""


class NoCluster(SettingsError):
    """No setting, kubeconfig or service account names a cluster."""
