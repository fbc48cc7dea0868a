"""What a session reports to the scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain.errors import Rejection, Stage
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome

if TYPE_CHECKING:
    pass


class Source(Enum):
    """Who wrote a piece of log."""

    COMMANDS = "commands"
    SETUP = "setup"
    AGENT = "agent"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The action has a slot and a session here. `environment` names the pod, for people."""

    environment: str


@dataclass(frozen=True, slots=True)
class Rejected:
    """The action is not run here; the only event of its attempt."""

    why: Rejection
    message: str


@dataclass(frozen=True, slots=True)
class StageChanged:
    """A stage began, or made progress that a person wants to see."""

    stage: Stage
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CommandStarted:
    """Command `index`, from 1, is being run."""

    index: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class CommandFinished:
    """Command `index` ended after `seconds`."""

    index: int
    exit_code: int
    seconds: float
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Up to 64 KiB of log, secrets masked; `cursor` is None for what does not come from the environment's log."""

    data: bytes
    cursor: Cursor | None = None
    source: Source = Source.COMMANDS


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that was not sent. `path` is relative to the workspace, as on the disk."""

    path: bytes
    why: str


@dataclass(frozen=True, slots=True)
class ArtifactSummary:
    """What was uploaded; `left_out` names at most 100, `left_out_files` counts all."""

    files: int = 0
    bytes: int = 0
    left_out: tuple[LeftOut, ...] = ()
    left_out_files: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The attempt ended; always the last event."""

    outcome: Outcome


Event = Accepted | Rejected | StageChanged | CommandStarted | CommandFinished | LogChunk | ArtifactSummary | Finished
