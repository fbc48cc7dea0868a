"""What happens in a pipeline, as the people who watch it see it.

The scheduler numbers these without gaps, keeps them, and tells them to any number of watchers. What comes from an agent
stays the value it is in `agent.domain.actions`; the rest, which only a scheduler knows, is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain import events
from agent.domain.outcome import Outcome

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class ActionPlan:
    """One action of a pipeline that was submitted."""

    name: str
    needs: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Submitted:
    """The pipeline is queued; always its first event. `folder` holds logs and files, on the scheduler's machine."""

    name: str
    actions: tuple[ActionPlan, ...]
    folder: str


@dataclass(frozen=True, slots=True)
class Started:
    """An attempt was given to an agent."""

    agent: str


@dataclass(frozen=True, slots=True)
class LogText:
    """Bytes of an attempt's log, as written; `offset` is where they stand in it."""

    data: bytes
    source: events.Source
    offset: int


@dataclass(frozen=True, slots=True)
class FileStored:
    """A file of the action is in the scheduler's folder. `path` is relative to the action's own folder."""

    path: bytes
    size: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class ActionEnded:
    """The action's one end; `seconds` since its attempt was given to an agent, 0 when none was."""

    outcome: Outcome
    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Every action has ended; always the last event."""


EventBody = (
    Submitted
    | Started
    | events.Accepted
    | events.StageChanged
    | events.CommandStarted
    | events.CommandFinished
    | LogText
    | FileStored
    | events.ArtifactSummary
    | ActionEnded
    | Ended
)


@dataclass(frozen=True, slots=True)
class PipelineEvent:
    """One event of a pipeline. `position` counts from 1, `time` is seconds since the epoch, `action` is its name."""

    pipeline: str
    position: int
    time: float
    body: EventBody
    action: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far the copying of files is: how many are whole, bytes of all, the current one and what it will have."""

    files: int
    sent: int
    path: bytes = b""
    done: int = 0
    size: int = 0
