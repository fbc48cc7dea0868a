"""The reconnect loop that both protocols share.

A `Reconnector` connects to the scheduler, waits until that connection ends, pauses and connects again. It lives as long
as the process. Running sessions do not notice an outage, because their events wait in the outbox.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.backoff import Backoff
from agent.domain.errors import Refused, SchedulerError
from agent.scheduler.call_status import ROTATED, ConnectionBroken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.settings import SchedulerSettings
    from agent.telemetry.metrics import Metrics

# Values of `ConnectionBroken.kind` with the same meaning: the scheduler cannot be reached. If one of these values
# follows another, the agent does not log the outage again.
OUTAGES = frozenset({"closed", "unavailable", "silent"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Timings:
    """Wait times of the reconnect loop, in seconds. The longest pause is the setting `scheduler.reconnect_max`."""

    first_pause: float = 0.5
    """Bound of the pause after the first failure. The bound doubles with each failure."""
    stable_after: float = 10.0
    """Seconds until a connection counts as stable. After a stable connection the bound starts again."""


DEFAULT_TIMINGS = Timings()


class Reconnector:
    """Runs `connect` again and again until `close`. `connected` is set while the scheduler has the agent in its pool.

    `connect` opens one connection and returns or raises when the connection has ended. It calls `on_connected` after
    the scheduler has acknowledged the registration, and `on_disconnected` when the connection has ended.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        metrics: Metrics,
        connect: Callable[[], Awaitable[None]],
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        self.address = settings.address
        self.metrics = metrics
        self.connect = connect
        self.timings = timings
        self.backoff = Backoff(timings.first_pause, settings.reconnect_max)
        # Used after the scheduler refused the agent's token or certificate. A new token or certificate takes minutes to
        # arrive, so even the first pause is nearly the longest pause.
        self.untrusted_backoff = Backoff(settings.reconnect_max, settings.reconnect_max, least_share=0.8)
        self.connected = asyncio.Event()
        self.connected_since = 0.0
        self.closing = asyncio.Event()
        self.logged_outages: set[str] = set()

    async def run(self) -> None:
        """Stay connected until `close`.

        Raises:
            Refused: the refusal is permanent. Only another version of the agent or the scheduler helps.
        """
        while not self.closing.is_set():
            try:
                await self.connect()
            except SchedulerError as error:
                kind = error.kind if isinstance(error, ConnectionBroken) else "refused"
                self.metrics.stream_reconnects.labels(kind).inc()
                if isinstance(error, Refused) and error.permanent:
                    raise
                if kind == ROTATED:
                    log.info("reconnecting to the scheduler", reason=str(error))
                elif not self.closing.is_set():
                    self.log_outage(kind, error)
                    await self.pause(self.pause_after(error))

    def close(self) -> None:
        """End the reconnect loop. The caller must end the current connection itself."""
        self.closing.set()

    def on_connected(self) -> None:
        """Record that the scheduler has acknowledged the registration."""
        self.connected_since = time.monotonic()
        self.connected.set()
        self.metrics.stream_connected.set(1)
        self.logged_outages.clear()

    def on_disconnected(self) -> None:
        """Record that the connection has ended, or that it could not be opened."""
        if self.connected.is_set() and time.monotonic() - self.connected_since >= self.timings.stable_after:
            self.backoff.reset()
        self.connected.clear()
        self.metrics.stream_connected.set(0)

    def pause_after(self, error: SchedulerError) -> float:
        """Count a failure and return the seconds until the next try."""
        pause = self.backoff.next()
        if isinstance(error, Refused) and error.retry_after is not None:
            return error.retry_after
        if isinstance(error, ConnectionBroken) and error.kind == "unauthenticated":
            return self.untrusted_backoff.next()
        return pause

    def log_outage(self, kind: str, error: SchedulerError) -> None:
        """Log an outage once. Log the outage again only if its cause changes to a kind that a person must fix."""
        reason = "outage" if kind in OUTAGES else kind
        if reason in self.logged_outages:
            return
        self.logged_outages.add(reason)
        log.warning(f"cannot reach the scheduler at {self.address}", reason=str(error), kind=kind)

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until `close`."""
        try:
            async with asyncio.timeout(seconds):
                await self.closing.wait()
        except TimeoutError:
            return
