"""The states of a run, and the events that it waits for in each. `run_pipeline` joins them.

Pure. A run has one state until its pipeline has ended.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    """State of a run, until its pipeline has ended."""

    STARTING = auto()
    RUNNING = auto()
    CANCELLING = auto()


class Event(Enum):
    """What a run waits for. If several events have happened, the first in this order counts."""

    PIPELINE_ENDED = auto()
    INTERRUPTED_AGAIN = auto()
    ENGINE_ENDED = auto()
    AGENT_READY = auto()
    INTERRUPTED = auto()
    OUTPUT_CLOSED = auto()
    START_TIMEOUT = auto()
    TIMEOUT = auto()


# For each state, the events that the run does not wait for: they have happened before, or change nothing any more.
IGNORED = {
    State.STARTING: frozenset[Event](),
    State.RUNNING: frozenset({Event.AGENT_READY}),
    State.CANCELLING: frozenset({Event.AGENT_READY, Event.INTERRUPTED, Event.OUTPUT_CLOSED}),
}
