"""When a log follower tries again after a failure, and when it gives up. A `Failures` lives as long as its follower."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import structlog

from agent.backoff import Backoff
from agent.cluster.logs.request import now
from agent.cluster.logs.source import LogSource, LogState, Timings, Way

if TYPE_CHECKING:
    from agent.domain.errors import ClusterError

log = structlog.get_logger(__name__)

NO_POD = re.compile(r'\bpods "[^"]*" not found')
NOT_STARTED = "waiting to start"


class Failures:
    """The failures of one log follower since its last success. Owned by the follower."""

    def __init__(self, pod: str, source: LogSource, timings: Timings) -> None:
        self.pod = pod
        self.source = source
        self.timings = timings
        # Half of each pause is random, so that followers that lost their connections together do not reconnect
        # together.
        self.backoff = Backoff(timings.pause, timings.longest_pause, least_share=0.5)
        self.failing_since: float | None = None

    def on_progress(self) -> None:
        self.backoff.reset()
        self.failing_since = None

    def is_final(self, error: ClusterError, state: LogState, way: Way) -> bool:
        """Return whether no retry of this way of reading will help."""
        if pod_is_gone(error):
            return True
        if state is LogState.OPEN and way is Way.STREAM and (error.retryable or NOT_STARTED in error.message):
            return False
        if self.failing_since is None:
            self.failing_since = now()
        limit = self.timings.give_up if error.retryable else self.timings.refused
        return now() - self.failing_since >= limit

    async def pause(self, state: LogState, error: ClusterError | None) -> None:
        """Wait before the next request, for as long as Retry-After demands.

        Without Retry-After, wait until the back-off has passed or the state has changed, whichever is first.
        """
        if error and self.backoff.failures == 0:
            log.warning("the log cannot be read and is retried", pod=self.pod, error=error.message)
        delay = self.backoff.next()
        if error and error.retry_after is not None:
            await asyncio.sleep(min(error.retry_after, self.timings.longest_retry_after))
            return
        try:
            async with asyncio.timeout(delay):
                await self.source.wait_while(state)
        except TimeoutError:
            return


def pod_is_gone(error: ClusterError) -> bool:
    return error.status == 404 and NO_POD.search(error.message) is not None
