"""The events that a session sends to the scheduler.

An event lives from the moment it happens until the scheduler has acknowledged it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.domain.errors import Rejection, Stage
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome


class Source(Enum):
    """The writer of a piece of log: the commands, the pod's set-up (such as the clone), the agent, or a service."""

    COMMANDS = "commands"
    SETUP = "setup"
    AGENT = "agent"
    SERVICE = "service"


class ServiceState(Enum):
    """The state of a service. `READY` includes that the service runs. The values are those of the JSON output."""

    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The agent has started a session for the action. `environment` is the name of the pod, for display."""

    environment: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The agent does not start the action. The agent sends no other event about the attempt."""

    why: Rejection
    message: str


@dataclass(frozen=True, slots=True)
class StageChanged:
    """A stage started, or its progress changed. `detail` is the progress for display, "" for none."""

    stage: Stage
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CommandStarted:
    """A command started. `index` counts from 1. `cursor` is the position in the log at the start."""

    index: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class CommandFinished:
    """A command ended. `index` counts from 1. `cursor` is the position in the log at the end."""

    index: int
    exit_code: int
    seconds: float
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Up to 256 KiB of log, with secrets masked.

    `cursor` is the position behind `data` in the pod's log. It is None if the text does not come from the commands.
    `service` is the name of the service that wrote the data, and `service_cursor` the position in the log of this
    service.
    """

    data: bytes
    cursor: Cursor | None = None
    source: Source = Source.COMMANDS
    service: str = ""
    service_cursor: bytes = b""


@dataclass(frozen=True, slots=True)
class ServiceChanged:
    """A service has another state. `exit_code` is None if the service runs, or if its exit code is unknown."""

    name: str
    state: ServiceState
    exit_code: int | None = None
    message: str = ""


class CacheKind(Enum):
    """What happened to a cache. The values are those of the metrics and of the JSON output."""

    HIT = "hit"
    FALLBACK = "fallback"
    MISS = "miss"
    SAVED = "saved"
    EXISTS = "exists"
    SKIPPED = "skipped"
    FAILED = "failed"

    @property
    def restores(self) -> bool:
        """Whether files were restored."""
        return self in (CacheKind.HIT, CacheKind.FALLBACK)


@dataclass(frozen=True, slots=True)
class CacheResult:
    """What happened to one cache before the commands, or after them. `used_key` is the key of the restored entry.

    `bytes` is the size of the archive in the store, 0 if none was moved. `message` has the cause of a fault.
    """

    key: str
    kind: CacheKind
    used_key: str = ""
    bytes: int = 0
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file of the workspace that was not copied. `path` is relative to the workspace, as bytes of the file system."""

    path: bytes
    why: str


@dataclass(frozen=True, slots=True)
class ArtifactSummary:
    """The result of copying the files of an action. `bytes` is the size of all copied files.

    `left_out` names at most 100 files that were not copied, `left_out_files` is the number of all such files.
    """

    files: int = 0
    bytes: int = 0
    left_out: tuple[LeftOut, ...] = ()
    left_out_files: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt ended. Always the last event."""

    outcome: Outcome


Event = (
    Accepted
    | Rejected
    | StageChanged
    | ServiceChanged
    | CommandStarted
    | CommandFinished
    | LogChunk
    | CacheResult
    | ArtifactSummary
    | Finished
)
