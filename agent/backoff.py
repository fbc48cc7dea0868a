"""Pauses between the tries of an operation that fails.

Every reconnect loop of the agent uses the class `Backoff`, so that all loops spread their requests over time in the
same way. A `Backoff` lives as long as the loop that owns it.
"""

from __future__ import annotations

import random

from tenacity import AsyncRetrying, RetryCallState, wait_exponential


class Backoff:
    """Computes the next pause of one loop. The loop calls `reset` after a success.

    The bound of the pause doubles with each failure, from `first` to `longest` seconds. The pause is random between
    `least_share` times the bound and the bound. A `least_share` of 0.0 is full jitter.
    """

    def __init__(self, first: float, longest: float, *, least_share: float = 0.0) -> None:
        self.bound = wait_exponential(multiplier=first, max=longest)
        self.least_share = least_share
        # tenacity computes a pause from a RetryCallState. Of this state, only the number of the try is used here.
        self.state = RetryCallState(AsyncRetrying(), None, (), {})

    @property
    def failures(self) -> int:
        """Number of pauses since the last `reset`."""
        return self.state.attempt_number - 1

    def next(self) -> float:
        """Count a failure and return the pause after it, in seconds."""
        bound = self.bound(self.state)
        self.state.prepare_for_next_attempt()
        return random.uniform(self.least_share * bound, bound)  # noqa: S311 - spreads load, guards nothing

    def reset(self) -> None:
        """Forget all failures. The next pause has the bound `first` again."""
        self.state.attempt_number = 1
