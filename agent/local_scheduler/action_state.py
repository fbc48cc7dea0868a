"""How far an action is, and what an agent's event changes about it: pure.

A `Progress` is one row of the store. It lives from the submission of its pipeline until the scheduler forgets the
pipeline. Only the newest attempt is kept; what earlier ones did stands in the pipeline's events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain import events as session_events
from agent.domain.actions import Key
from agent.domain.errors import Stage
from agent.domain.outcome import Outcome
from agent.pipeline import events

if TYPE_CHECKING:
    from agent.domain.events import Event
    from agent.pipeline.events import Happening


class State(Enum):
    """Where an action is, as its scheduler sees it."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Progress:
    """What is known of an action. `agent` is the id of the one that holds it, `started` seconds since the epoch.

    `seq`, `cursor`, `stage` and `command` are of the newest event; `log_bytes` is the length of the attempt's log.
    `cancel` is the message of a request to end, None when there is none.
    """

    pipeline: str
    name: str
    state: State = State.WAITING
    attempt: int = 1
    claim: int = 1
    agent: str = ""
    started: float = 0.0
    seq: int = 0
    cursor: bytes = b""
    stage: Stage | None = None
    command: int = 0
    log_bytes: int = 0
    cancel: str | None = None
    outcome: Outcome | None = None

    @property
    def action_id(self) -> str:
        """The action's name among all pipelines."""
        return f"{self.pipeline}/{self.name}"

    @property
    def key(self) -> Key:
        """The newest attempt and claim."""
        return Key(self.action_id, self.attempt, self.claim)

    def given(self, agent: str, now: float) -> Progress:
        """Return it as running on an agent."""
        return replace(self, state=State.RUNNING, agent=agent, started=now)

    def taken_back(self) -> Progress:
        """Return it as waiting again in the same attempt: its agent did not start it."""
        return replace(self, state=State.WAITING, agent="", seq=0)

    def again(self) -> Progress:
        """Return it as waiting in its next attempt."""
        return Progress(self.pipeline, self.name, attempt=self.attempt + 1, cancel=self.cancel)

    def ended(self, outcome: Outcome) -> Progress:
        """Return it as ended."""
        return replace(self, state=State.ENDED, outcome=outcome)

    def seconds(self, now: float) -> float:
        """How long the attempt has run."""
        return max(0.0, now - self.started) if self.started else 0.0


def advance(progress: Progress, seq: int, event: Event | None, now: float) -> tuple[Progress, Happening | None]:
    """Return the progress after the next event of its attempt, and what watchers are told of it."""
    progress = replace(progress, seq=seq)
    match event:
        case session_events.StageChanged():
            return replace(progress, stage=event.stage), event
        case session_events.CommandStarted():
            return replace(progress, command=event.index, cursor=event.cursor.encode()), event
        case session_events.CommandFinished():
            return replace(progress, cursor=event.cursor.encode()), event
        case session_events.LogChunk():
            text = events.LogText(event.data, event.source, progress.log_bytes)
            cursor = event.cursor.encode() if event.cursor else progress.cursor
            return replace(progress, log_bytes=progress.log_bytes + len(event.data), cursor=cursor), text
        case session_events.Finished():
            return progress.ended(event.outcome), events.ActionEnded(event.outcome, progress.seconds(now))
        case session_events.Accepted() | session_events.ArtifactSummary():
            return progress, event
        case _:
            return progress, None
