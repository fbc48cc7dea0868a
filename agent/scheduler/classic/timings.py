"""The waits of the classic protocol that no setting changes. Tests pass shorter waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassicTimings:
    """Waits in seconds. One object per agent."""

    silence: float = 25.0
    """Seconds without a response until an empty response is written. The scheduler notices only then that its client
    is gone. Each empty response costs the client an empty row of log."""
    gather: float = 0.1
    """Seconds to collect log for one response. The client stores one row for each response."""


DEFAULT_TIMINGS = ClassicTimings()
