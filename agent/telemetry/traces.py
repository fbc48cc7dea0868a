"""Where each action was and for how long, for those who collect traces: what a session tells, silence otherwise.

A `Trace` lives as long as its session. Without a collector (the default) it is a `Trace` that does nothing but pass the
scheduler's own trace context on to the commands; with one (`traces.endpoint`), `otel` makes spans of it. Nothing
here waits, and no failure of a collector reaches a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.actions import Action
    from agent.domain.outcome import Outcome


class Trace:
    """The trace of one session; this one goes nowhere.

    `traceparent` (W3C) is what the commands are given: theirs becomes a part of the same trace.
    """

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    @property
    def trace_id(self) -> str:
        """The id that finds the trace, "" without one."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) >= 4 else ""

    def enter(self, stage: str) -> None:
        """Begin a stage, and end the one before it."""

    def decided(self, outcome: Outcome) -> None:
        """Note the outcome."""

    def end(self) -> None:
        """End everything: nothing of the session is left."""


class Traces:
    """Makes a trace for each session; this one makes silent ones."""

    def begin(self, action: Action, *, adopted: bool = False) -> Trace:
        """Return the trace of a session that begins now, as a part of the trace that the action names."""
        return Trace(action.traceparent)

    def close(self) -> None:
        """Send what was not sent yet, for a few seconds at most; blocks."""
