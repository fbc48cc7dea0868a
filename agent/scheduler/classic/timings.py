"""The wait times of the classic protocol that are constants and not settings. Tests pass shorter times."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassicTimings:
    """Wait times in seconds. An agent has one object."""

    silence: float = 25.0
    """Seconds without a response until an empty response is written. The scheduler notices only then that its client
    is gone. Each empty response costs the client an empty row of log."""
    gather: float = 0.1
    """Seconds to collect log for one response. The client stores one row for each response."""


DEFAULT_TIMINGS = ClassicTimings()
