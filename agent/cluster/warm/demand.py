"""How many warm pods a pool should have. Pure, except for the numbers that a `Demand` counts.

A pool needs as many waiting pods as actions arrive while one pod is being replaced. The arrival rate and the time to
replace a pod are moving averages.
"""

from __future__ import annotations

import math

# Seconds after which an arrival counts for less than half in the rate.
RATE_SECONDS = 120.0
# Seconds that a new pod takes to be ready, before the first measurement.
FIRST_REFILL_SECONDS = 5.0
# Share of a new measurement in the average time to replace a pod.
REFILL_SHARE = 0.3


class Demand:
    """The demand for one pool. Owned by the pool. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self.rate = 0.0  # arrivals per second
        self.rated_at = now
        self.last_arrival = -math.inf
        self.refill_seconds = FIRST_REFILL_SECONDS

    def arrived(self, now: float) -> None:
        """Count an action that the pool's pods fit, even if the action got no warm pod."""
        self.rate = self.rate_at(now) + 1 / RATE_SECONDS
        self.rated_at = self.last_arrival = now

    def rate_at(self, now: float) -> float:
        return self.rate * math.exp(-(now - self.rated_at) / RATE_SECONDS)

    def refilled(self, seconds: float) -> None:
        """Record how long a new pod took to be ready."""
        self.refill_seconds += REFILL_SHARE * (seconds - self.refill_seconds)

    def wanted(self, now: float, least: int, most: int, idle_after: float) -> int:
        """Return the number of pods that should wait, from `least` to `most`."""
        if now - self.last_arrival > idle_after:
            return least
        arrivals = math.ceil(self.rate_at(now) * self.refill_seconds)
        return min(most, max(least, arrivals + 1))
