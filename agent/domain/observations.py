"""What package `agent.cluster` reports about an environment. The session bases its decisions on these values.

An observation lives until the session has processed it. `Exited` already contains the verdict of the commands. A pure
function computes the verdict from the status of container `action`. Later observations do not change the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.errors import Reason
    from agent.domain.events import ArtifactSummary, ServiceChanged


# Beginning of what a set-up waits for when only services are not ready yet.
FOR_SERVICES = "waiting for service "

# Every observation of an environment that still exists has `services`: the states of the services, as far as the status
# of the pod shows them. A service with ports is `READY` there only if the agent knows so from the log.


@dataclass(frozen=True, slots=True)
class Waiting:
    """The environment is being set up. `detail` describes what the set-up waits for, for display."""

    detail: str
    services: tuple[ServiceChanged, ...] = ()

    @property
    def for_services(self) -> bool:
        """Whether only services are not ready yet."""
        return self.detail.startswith(FOR_SERVICES)


@dataclass(frozen=True, slots=True)
class Running:
    """Container `action` runs, or has ended while the node has not yet reported why. `detail` is for display.

    `service_failure` is the message of a service that failed, for which the commands must be stopped. "" for none.
    """

    detail: str = ""
    service_failure: str = ""
    services: tuple[ServiceChanged, ...] = ()


@dataclass(frozen=True, slots=True)
class SetupFailed:
    """The environment cannot be set up. `log` is a longer text for the action's log, "" for none."""

    reason: Reason
    message: str
    log: str = ""
    services: tuple[ServiceChanged, ...] = ()


@dataclass(frozen=True, slots=True)
class Exited:
    """The commands ended by themselves. `reason` is None if all commands succeeded.

    `exit_code` is that of container `action`. `command` is the number of the last command that was started, 0 when
    unknown. If `files` is False, artifacts cannot be copied, because the pod is gone or is being deleted. `files_lost`
    is then the cause.
    """

    exit_code: int
    command: int
    reason: Reason | None
    message: str = ""
    files: bool = True
    files_lost: str = ""
    services: tuple[ServiceChanged, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """The environment was lost before the commands ended. `unstarted`: the pod's status proves that no command ran.

    The agent re-creates the pod only if `unstarted`. `log` is a longer text for the action's log, "" for none.
    """

    reason: Reason
    message: str
    unstarted: bool = False
    log: str = ""


Observation = Waiting | Running | SetupFailed | Exited | Lost
FINAL = (SetupFailed, Exited, Lost)


@dataclass(frozen=True, slots=True)
class LogPiece:
    """The next bytes of a pod's log. `offset` is the position of the first byte in the log."""

    data: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class LogGap:
    """`size` bytes of the log, from the position `offset` on, cannot be read any more."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The end of the log, after all other `LogItem` values of a pod.

    `dropped` is the number of bytes that the pod did not store, because they were over the limit of the log.
    """

    dropped: int = 0


@dataclass(frozen=True, slots=True)
class LogLost:
    """The agent cannot read the rest of the log. No other `LogItem` follows. `why` is the cause, for display.

    The verdict of the commands does not change.
    """

    why: str


LogItem = LogPiece | LogGap | LogEnd | LogLost


class MarkerKind(Enum):
    """The kinds of markers: a service is ready, a command started or finished, or the last command finished.

    In a marker of kind `READY`, the number of the command is the number of the service, from 1.
    """

    READY = "r"
    STARTED = "s"
    FINISHED = "f"
    LAST = "l"


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker (a line about the start or end of a command) that was removed from the log.

    `exit_code` is for display. The verdict comes from the pod's status. `raw` holds the bytes of the log that the
    marker was read from.
    """

    kind: MarkerKind
    command: int
    exit_code: int | None = None
    raw: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ServiceOutput:
    """The next lines of the log of a service. `cursor` is the position after them, which only the environment reads."""

    data: bytes
    cursor: bytes


@dataclass(frozen=True, slots=True)
class Collected:
    """The last item of a complete copy of artifacts.

    `refused` is the reason why files that the user declared were not sent, "" when all were.
    """

    summary: ArtifactSummary
    refused: str = ""
