"""What is seen of an environment: the values that the cluster's side reports and the session decides on.

They live as long as one look at the pod. The verdict of the commands is already in `Exited`, made by a pure function
from the container's own status; nothing later may change it, only whether files could still be had.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.errors import Reason
    from agent.domain.events import ArtifactSummary
    from agent.domain.log_cursor import Cursor


@dataclass(frozen=True, slots=True)
class Waiting:
    """The environment is being set up; `detail` says for what it waits, for people."""

    detail: str


@dataclass(frozen=True, slots=True)
class Running:
    """The container of the commands runs (or is about to: its files container may still be starting)."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class SetupFailed:
    """The environment cannot be set up. `log` is the text for the person who reads the set-up log."""

    reason: Reason
    message: str
    log: str = ""


@dataclass(frozen=True, slots=True)
class Exited:
    """The commands ended by themselves. `reason` None is success.

    `exit_code` is the container's; `command` the last one that was started, 0 when unknown. `files` False: the
    environment is gone or going, and `files_lost` says why.
    """

    exit_code: int
    command: int
    reason: Reason | None
    message: str = ""
    files: bool = True
    files_lost: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """The environment went away before the commands ended. `unstarted`: with proof that no command ran."""

    reason: Reason
    message: str
    unstarted: bool = False
    log: str = ""


Observation = Waiting | Running | SetupFailed | Exited | Lost
FINAL = (SetupFailed, Exited, Lost)


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Payload bytes of the environment's log, timestamps stripped; `end` is the position after its last byte.

    `end.command` is not filled in here: only the marker reader knows it.
    """

    data: bytes
    end: Cursor


@dataclass(frozen=True, slots=True)
class LogGap:
    """The node began a new file of the log before the old one was read to its end.

    Nothing between the lines of `since` and `until` (RFC 3339, "" the end) can be had any more. `certain`: something
    was there. Otherwise the old file may have ended at `since`: the node serves it no longer, so nobody can know.
    """

    since: str
    until: str
    certain: bool = False


@dataclass(frozen=True, slots=True)
class LogLost:
    """The log ends here although more may have been written; `why` is for people. Changes no verdict."""

    why: str


class MarkerKind(Enum):
    """What a marker of the supervisor announces."""

    STARTED = "s"
    FINISHED = "f"
    LAST = "l"


@dataclass(frozen=True, slots=True)
class Marker:
    """An announcement of the supervisor, stripped from the log. `exit_code` is a hint, never the verdict.

    `raw` holds the bytes of the log that the marker was read from.
    """

    kind: MarkerKind
    command: int
    exit_code: int | None = None
    raw: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Collected:
    """The end of a collection that came whole.

    `refused` says why declared files are not among those that were sent, and is empty otherwise.
    """

    summary: ArtifactSummary
    refused: str = ""
