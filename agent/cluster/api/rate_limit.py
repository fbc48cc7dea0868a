"""The client-side rate limit: a token bucket whose waiters are served by priority, then first come, first served.

The bucket lives as long as the client. An agent that starts hundreds of actions at once has more requests than the
limit allows. Renewals of the agent's Lease go first: after a late renewal, other agents adopt all sessions of the
agent. Requests of running sessions come next. New pods come last. Each new pod causes only a few requests of a higher
priority, so new pods are not starved.
"""

from __future__ import annotations

import asyncio
import heapq
from enum import IntEnum
from itertools import count

# Amount that counts as one whole token. It is less than 1, because the computed amount has rounding errors when the
# timer for the next token runs.
WHOLE = 1 - 1e-9


class Priority(IntEnum):
    """The order in which requests are served: the agent's own Lease first, then running sessions, then new pods.

    Warm pods that no action waits for come last.
    """

    ALIVE = 0
    RUNNING = 1
    NEW = 2
    REFILL = 3


# The values of the metric's label `rank`. The values are older than the members' names and do not change, because
# dashboards use them.
METRIC_LABELS = {Priority.ALIVE: "alive", Priority.RUNNING: "going", Priority.NEW: "new", Priority.REFILL: "refill"}


def priority_of(verb: str, resource: str) -> Priority:
    """Return the priority of a request. The verb and the resource are named as in RBAC."""
    if resource in ("leases", "version") or (verb in ("list", "watch") and resource == "pods"):
        return Priority.ALIVE
    return Priority.NEW if (verb, resource) == ("create", "pods") else Priority.RUNNING


class TokenBucket:
    """Admits `rate` requests per second, and a burst of twice as many.

    The API client owns the bucket and uses it in one event loop.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.tokens = self.burst = max(1.0, 2 * rate)
        self.refilled_at: float | None = None
        self.numbers = count()
        self.waiters: list[tuple[Priority, int, asyncio.Future[None]]] = []
        self.timer: asyncio.TimerHandle | None = None

    async def acquire(self, priority: Priority = Priority.RUNNING) -> None:
        """Wait for one token."""
        if not self.waiters and self.refill():
            self.tokens -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self.waiters, (priority, next(self.numbers), turn))
        self.serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The cancelled waiter had its token already and does not use it, so the next waiter gets the token.
                self.tokens += 1
                self.serve()
            raise

    def refill(self) -> bool:
        """Add the tokens of the time since the last call. Returns whether there is a whole token."""
        now = asyncio.get_running_loop().time()
        # The bucket is full until the first request, so the time before the first request does not matter.
        elapsed = now - self.refilled_at if self.refilled_at is not None else 0.0
        self.tokens = min(self.burst, self.tokens + elapsed * self.rate)
        self.refilled_at = now
        return self.tokens >= WHOLE

    def serve(self) -> None:
        """Give the tokens to waiters. Set a timer for the next token while waiters are left."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        while self.waiters and (self.waiters[0][2].done() or self.refill()):
            turn = heapq.heappop(self.waiters)[2]
            if not turn.done():
                self.tokens -= 1
                turn.set_result(None)
        if self.waiters:
            self.timer = asyncio.get_running_loop().call_later((1 - self.tokens) / self.rate, self.serve)
