"""The states of a run of a pipeline, and the events that the run waits for in each state.

A run has exactly one of these states at a time, until its pipeline has ended. `run_pipeline` changes the state.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """The states of a run from its start to the end of its pipeline."""

    STARTING = auto()
    RUNNING = auto()
    CANCELLING = auto()


class Event(Enum):
    """What a run waits for. If several events have happened, the member that stands first below counts."""

    PIPELINE_ENDED = auto()
    INTERRUPTED_AGAIN = auto()
    ENGINE_ENDED = auto()
    AGENT_READY = auto()
    INTERRUPTED = auto()
    OUTPUT_CLOSED = auto()
    START_TIMEOUT = auto()
    TIMEOUT = auto()


# For each state, the events that the run does not wait for, because they have already happened or no longer change
# anything.
IGNORED = {
    State.STARTING: frozenset[Event](),
    State.RUNNING: frozenset({Event.AGENT_READY}),
    State.CANCELLING: frozenset({Event.AGENT_READY, Event.INTERRUPTED, Event.OUTPUT_CLOSED}),
}
