"""The values that the store saves and loads. All of them are immutable data without I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.local_scheduler.action_state import ActionState
    from agent.pipeline.events import FileStored, PipelineEvent


@dataclass(frozen=True, slots=True)
class StoredPipeline:
    """A submitted pipeline. `source` and `text` are the name and the contents of its file.

    `submitted` is the time of the submission in seconds since the epoch.
    """

    id: str
    source: str
    text: str
    submitted: float
    ended: bool = False


@dataclass(frozen=True, slots=True)
class ActionFiles:
    """The complete list of an action's files. It replaces the stored list."""

    pipeline: str
    action: str
    files: Sequence[FileStored]


@dataclass(frozen=True, slots=True)
class Change:
    """What the store writes in one transaction.

    `pipeline` is a pipeline that is new or has ended. `new_attempt` is the state of the next attempt of an action.
    """

    pipeline: StoredPipeline | None = None
    states: Sequence[ActionState] = ()
    events: Sequence[PipelineEvent] = ()
    files: ActionFiles | None = None
    new_attempt: ActionState | None = None

    @property
    def starts_logs(self) -> bool:
        """Whether the change needs new empty log files: a new pipeline or a new attempt."""
        return self.new_attempt is not None or (self.pipeline is not None and not self.pipeline.ended)


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A pipeline as the store read it when it was opened.

    `position` is the position of the last event. `files` holds the files of each action, by the action's name.
    """

    pipeline: StoredPipeline
    actions: Sequence[ActionState]
    position: int
    files: dict[str, list[FileStored]]
