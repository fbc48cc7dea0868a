"""How far an action is, and what an agent's event changes about it: pure.

A `ActionState` is one row of the store. It lives from the submission of its pipeline until the scheduler forgets the
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
    from agent.pipeline.events import EventBody


class ActionStatus(Enum):
    """Where an action is, as its scheduler sees it."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class ActionState:
    """What is known of an action. `agent` is the id of the one that holds it, `started` seconds since the epoch.

    `seq`, `cursor`, `stage` and `command` are of the newest event; `log_bytes` is the length of the attempt's log.
    `cancel` is the message of a request to end, None when there is none.
    """

    pipeline: str
    name: str
    status: ActionStatus = ActionStatus.WAITING
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

    def assigned_to(self, agent: str, now: float) -> ActionState:
        """Return it as running on an agent."""
        return replace(self, status=ActionStatus.RUNNING, agent=agent, started=now)

    def unassigned(self) -> ActionState:
        """Return it as waiting again in the same attempt: its agent did not start it."""
        return replace(self, status=ActionStatus.WAITING, agent="", seq=0)

    def next_attempt(self) -> ActionState:
        """Return it as waiting in its next attempt."""
        return ActionState(self.pipeline, self.name, attempt=self.attempt + 1, cancel=self.cancel)

    def with_outcome(self, outcome: Outcome) -> ActionState:
        """Return it as ended."""
        return replace(self, status=ActionStatus.ENDED, outcome=outcome)

    def elapsed(self, now: float) -> float:
        """How long the attempt has run."""
        return max(0.0, now - self.started) if self.started else 0.0


def advance(state: ActionState, seq: int, event: Event | None, now: float) -> tuple[ActionState, EventBody | None]:
    """Return the state after the next event of its attempt, and what watchers are told of it."""
    state = replace(state, seq=seq)
    match event:
        case session_events.StageChanged():
            return replace(state, stage=event.stage), event
        case session_events.CommandStarted():
            return replace(state, command=event.index, cursor=event.cursor.encode()), event
        case session_events.CommandFinished():
            return replace(state, cursor=event.cursor.encode()), event
        case session_events.LogChunk():
            text = events.LogText(event.data, event.source, state.log_bytes)
            cursor = event.cursor.encode() if event.cursor else state.cursor
            return replace(state, log_bytes=state.log_bytes + len(event.data), cursor=cursor), text
        case session_events.Finished():
            return state.with_outcome(event.outcome), events.ActionEnded(event.outcome, state.elapsed(now))
        case session_events.Accepted() | session_events.ArtifactSummary():
            return state, event
        case _:
            return state, None
