"""The waits of the API client and its watches, as one value. Tests pass shorter waits to `Client`.

The value has no lifetime of its own. `client.DEFAULT_TIMINGS` is used when no other value is given.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ApiTimings:
    """Seconds that requests and watches wait. The client owns the value, for its whole life."""

    retry_pause: float = 0.2
    """Seconds of the longest possible pause before the first retry of a request. Each further retry doubles it."""
    longest_retry_pause: float = 10.0
    longest_retry_after: float = 60.0
    """Seconds of the longest Retry-After that a retry or a watch obeys."""
    watch_connect: float = 10.0
    """Seconds until a connection for a watch is given up."""
    watch_silence: float = 100.0
    """Seconds without a byte until a watch counts as dead. API servers send a bookmark about every minute."""
    watch_steady: float = 1.0
    """Seconds that a watch must last so that its end is not a failure."""
    watch_relist: float = 240.0
    """Seconds between two lists. A list finds the changes that a server has left out of its watches."""
    watch_duration: tuple[int, int] = (240, 290)
    """Shortest and longest time, in seconds, after which the API server is asked to end a watch."""
    watch_pause: float = 0.4
    """Seconds of the longest possible pause after the first failure of a watch. Each further failure doubles it."""
    longest_watch_pause: float = 10.0
