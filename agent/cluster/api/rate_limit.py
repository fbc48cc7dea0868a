"""How fast the API is asked: a token bucket whose waiters go by their priority, then in the order in which they came.

Lives as long as the client. An agent that gets hundreds of actions at once wants more requests than it may make, and
not all can wait alike. What tells others that it lives, and what tells it of the cluster, goes first: a Lease that is
renewed too late gives every session away. Then comes what brings a session forward or to its end, and new pods last:
each of them asks for its log and its deletion once, so that they always come to their turn.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from enum import IntEnum
from itertools import count

# As floats sum up: a timer that ran to the moment finds its token.
WHOLE = 1 - 1e-9


class Priority(IntEnum):
    """Who goes first: what keeps the agent alive, what carries sessions on, what begins new ones."""

    ALIVE = 0
    RUNNING = 1
    NEW = 2


# The values of the metric's label `rank`. They are older than the members' names and stay for dashboards.
METRIC_LABELS = {Priority.ALIVE: "alive", Priority.RUNNING: "going", Priority.NEW: "new"}


def priority_of(verb: str, resource: str) -> Priority:
    """Return the rank of a request, named as in RBAC."""
    if resource in ("leases", "version") or (verb in ("list", "watch") and resource == "pods"):
        return Priority.ALIVE
    return Priority.NEW if (verb, resource) == ("create", "pods") else Priority.RUNNING


class TokenBucket:
    """Lets `rate` requests a second through, twice that in a burst."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.tokens = self.burst = max(1.0, 2 * rate)
        self.seen = time.monotonic()
        self.numbers = count()
        self.line: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self.timer: asyncio.TimerHandle | None = None

    async def acquire(self, priority: Priority = Priority.RUNNING) -> None:
        """Wait for one token."""
        if not self.line and self.refilled():
            self.tokens -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self.line, (priority, next(self.numbers), turn))
        self.serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It was its turn already: the token is the next one's.
                self.tokens += 1
                self.serve()
            raise

    def refilled(self) -> bool:
        """Count what has come in since the last look; whether there is a whole token."""
        now = time.monotonic()
        self.tokens = min(self.burst, self.tokens + (now - self.seen) * self.rate)
        self.seen = now
        return self.tokens >= WHOLE

    def serve(self) -> None:
        """Give tokens to those who wait, and look again when the next one is there."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        while self.line and (self.line[0][2].done() or self.refilled()):
            turn = heapq.heappop(self.line)[2]
            if not turn.done():
                self.tokens -= 1
                turn.set_result(None)
        if self.line:
            self.timer = asyncio.get_running_loop().call_later((1 - self.tokens) / self.rate, self.serve)
