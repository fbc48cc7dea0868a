"""Traces of actions: in which stage each action was, and for how long.

A `Trace` lives as long as its session. Without a collector (the default), a `Trace` only passes the scheduler's trace
context on to the commands. If `traces.endpoint` is set, the classes of module `otel` create spans in these methods. No
method of a `Trace` blocks, and an error of the collector never affects a session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.domain.actions import Action
    from agent.domain.outcome import Outcome


class Trace:
    """The trace of one session. This base class exports nothing.

    The commands get `traceparent` (W3C) in their environment, so that their own spans join the same trace.
    """

    def __init__(self, traceparent: str = "") -> None:
        self.traceparent = traceparent

    @property
    def trace_id(self) -> str:
        """The id of the trace, for log lines. "" without a trace."""
        parts = self.traceparent.split("-")
        return parts[1] if len(parts) >= 4 else ""

    def enter(self, stage: str) -> None:
        """Begin a stage, and end the previous stage."""

    def decided(self, outcome: Outcome) -> None:
        """Record the outcome of the session in the trace."""

    def end(self) -> None:
        """End the trace. Called when the pod of the session is gone."""


class Traces:
    """Creates the traces of an agent and lives as long as the process. This base class exports nothing."""

    def begin(self, action: Action, *, adopted: bool = False) -> Trace:
        """Return the trace of a session that begins now. It continues the trace that the action names."""
        del adopted  # Only an exported span records whether the session was adopted.
        return Trace(action.traceparent)

    def close(self) -> None:
        """Export the remaining spans. Blocks for a few seconds at most."""
