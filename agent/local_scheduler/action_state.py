"""The state of one action in the local scheduler, and how an agent's event changes that state. Pure functions.

An `ActionState` is one row of the store. It exists from the submission of its pipeline until the store deletes the
pipeline. It describes the newest attempt only. The pipeline's events describe the earlier attempts.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain import events as session_events
from agent.domain.actions import Key
from agent.domain.errors import Stage
from agent.domain.outcome import Outcome
from agent.pipeline import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.domain.events import Event
    from agent.pipeline.events import EventBody


class ActionStatus(Enum):
    """Whether an action waits for an agent, runs on an agent, or has ended. The values are stored."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


class Admission(Enum):
    """What the scheduler does with an event that the owner of an attempt sends.

    APPLY: the event has the next number, so the scheduler applies it. ACK: the event was applied before, so the
    scheduler only acknowledges it. DISCARD: the action has ended, so the scheduler asks the agent to drop the session.
    GAP: events before this event are missing, so the scheduler ends the agent's stream.
    """

    APPLY = "apply"
    ACK = "ack"
    DISCARD = "discard"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class ActionState:
    """The newest attempt of an action.

    `agent` is the id of the last agent that had the attempt, "" while the action waits. `started` is in seconds since
    the epoch, 0 before the attempt went to an agent. `seq`, `cursor`, `stage` and `command` come from the last applied
    events. `log_bytes` is the length of the attempt's log. `cancel` is the message of a stop request, None without one.
    `service_cursors` holds the last cursor of the log of each service.
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
    service_cursors: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def action_id(self) -> str:
        """The id of the action on the agents' stream: "<pipeline id>/<name>"."""
        return f"{self.pipeline}/{self.name}"

    @property
    def key(self) -> Key:
        """The action id with the newest attempt and claim."""
        return Key(self.action_id, self.attempt, self.claim)

    def assigned_to(self, agent: str, now: float) -> ActionState:
        """Return the state after the attempt went to an agent. `now` is in seconds since the epoch."""
        return replace(self, status=ActionStatus.RUNNING, agent=agent, started=now)

    def unassigned(self) -> ActionState:
        """Return the state after an agent rejected the attempt before its start. The attempt number stays."""
        return replace(self, status=ActionStatus.WAITING, agent="", seq=0)

    def next_attempt(self) -> ActionState:
        """Return the state in which the next attempt waits for an agent. A stop request is kept."""
        return ActionState(self.pipeline, self.name, attempt=self.attempt + 1, cancel=self.cancel)

    def with_outcome(self, outcome: Outcome) -> ActionState:
        """Return the state after the action ended."""
        return replace(self, status=ActionStatus.ENDED, outcome=outcome)

    def elapsed(self, now: float) -> float:
        """Return the seconds since the attempt went to an agent, 0 if no agent has got the attempt."""
        return max(0.0, now - self.started) if self.started else 0.0


def admission(state: ActionState, seq: int) -> Admission:
    """Decide what happens to event number `seq` of the newest attempt."""
    # An agent repeats events after a reconnect. A stored event is acknowledged even when the action has ended.
    if seq <= state.seq:
        return Admission.ACK
    if state.status is ActionStatus.ENDED:
        return Admission.DISCARD
    return Admission.APPLY if seq == state.seq + 1 else Admission.GAP


def advance(state: ActionState, seq: int, event: Event | None, now: float) -> tuple[ActionState, EventBody | None]:
    """Apply the next event of the attempt. Return the new state and the event of the pipeline for watchers.

    The event for watchers is None if watchers get no such event. `event` is None for a kind that this version does not
    know. Such an event changes only `seq`.
    """
    state = replace(state, seq=seq)
    match event:
        case session_events.StageChanged():
            return replace(state, stage=event.stage), event
        case session_events.CommandStarted():
            return replace(state, command=event.index, cursor=event.cursor.encode()), event
        case session_events.CommandFinished():
            return replace(state, cursor=event.cursor.encode()), event
        case session_events.LogChunk():
            return add_log(state, event)
        case session_events.Finished():
            return state.with_outcome(event.outcome), events.ActionEnded(event.outcome, state.elapsed(now))
        case session_events.Accepted() | session_events.ArtifactSummary():
            return state, event
        case session_events.ServiceChanged() | session_events.CacheResult():
            return state, event
        case _:
            return state, None


def add_log(state: ActionState, chunk: session_events.LogChunk) -> tuple[ActionState, events.LogText]:
    """Apply a chunk of the log. All writers share one log, so each line of a service begins with the service's name."""
    data, cursors = chunk.data, state.service_cursors
    if chunk.source is session_events.Source.SERVICE:
        prefix = f"[{chunk.service}] ".encode()
        data = b"".join(prefix + line + b"\n" for line in data.removesuffix(b"\n").split(b"\n"))
        if chunk.service_cursor:
            cursors = {**cursors, chunk.service: chunk.service_cursor}
    text = events.LogText(data, chunk.source, state.log_bytes, chunk.service)
    cursor = chunk.cursor.encode() if chunk.cursor else state.cursor
    state = replace(state, log_bytes=state.log_bytes + len(data), cursor=cursor, service_cursors=cursors)
    return state, text
