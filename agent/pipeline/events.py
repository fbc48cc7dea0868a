"""The events of a pipeline, which the local scheduler stores and sends to watchers.

The scheduler numbers the events of a pipeline without gaps. Any number of watchers can read the events. Events that an
agent reports have the types of `agent.domain.events`. This module has the types of events that only the scheduler
creates.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.domain import events
from agent.domain.outcome import Outcome

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class ActionPlan:
    """The parts of a submitted action that watchers need."""

    name: str
    needs: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Submitted:
    """The pipeline was queued. Always the first event. `folder` holds logs and artifacts on the scheduler's machine."""

    name: str
    actions: tuple[ActionPlan, ...]
    folder: str


@dataclass(frozen=True, slots=True)
class WaitingForAgent:
    """The action stays in the queue. `detail` is what it waits for, for display."""

    detail: str


@dataclass(frozen=True, slots=True)
class Started:
    """The scheduler assigned an attempt to an agent. `agent` is the id of the agent."""

    agent: str


@dataclass(frozen=True, slots=True)
class LogText:
    """Bytes of an attempt's log, secrets masked. `offset` is the position of the first byte in the log.

    `service` is the service that wrote the bytes, "" for every other source. Its lines begin with its name.
    """

    data: bytes
    source: events.Source
    offset: int
    service: str = ""


@dataclass(frozen=True, slots=True)
class FileStored:
    """The scheduler stored an artifact. `path` is relative to the folder of the action, as bytes of the file system.

    `uri` is the name of its object in an object store, "" if the scheduler has the content. `offset` is the position of
    its first byte in the object. Watchers do not get `mode`, `uri` and `offset`.
    """

    path: bytes
    size: int
    sha256: bytes
    mode: int = field(default=0o644, compare=False)
    uri: str = field(default="", compare=False)
    offset: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ActionEnded:
    """The action ended. `seconds` counts from the assignment of the attempt to an agent, 0 without an assignment."""

    outcome: Outcome
    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """Every action of the pipeline has ended. Always the last event."""


EventBody = (
    Submitted
    | WaitingForAgent
    | Started
    | events.Accepted
    | events.StageChanged
    | events.ServiceChanged
    | events.CacheResult
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
    """An event of a pipeline. `position` counts from 1 without gaps. `time` is in seconds since the epoch.

    `action` is the name of the action, and `attempt` the number of its attempt. In an event of the whole pipeline they
    are "" and 0.
    """

    pipeline: str
    position: int
    time: float
    body: EventBody
    action: str = ""
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """The progress of an upload of artifacts, or of the download of an input.

    `files` is the number of complete files, `sent` the number of transferred bytes of all files. `path`, `done` and
    `size` are the path, the transferred bytes and the announced bytes of the current file. `seconds` is the time since
    the start.
    """

    files: int
    sent: int
    path: bytes = b""
    done: int = 0
    size: int = 0
    seconds: float = 0.0
