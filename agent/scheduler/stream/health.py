"""When the agent sends its health to the scheduler: at the interval that the scheduler named, and after each change.

One reporter lives as long as the process. It calls the function `current` for the health at the moment of sending, so
that several changes in a row become one message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.session_state import Health


class HealthReporter:
    """Decides when the agent must send its health. `wake` is set when the sender must call `take`."""

    def __init__(self, current: Callable[[], Health], wake: asyncio.Event) -> None:
        self.current = current
        self.wake = wake
        self.last_sent: Health | None = None
        self.due = False

    def notify(self) -> None:
        """Record that the health may have changed.

        The health is sent at once if it differs from the last health sent.
        """
        self.due = True
        self.wake.set()

    def make_due(self) -> None:
        """Send the health next even if it has not changed, because the interval is over or the stream is new."""
        self.last_sent = None
        self.notify()

    def take(self) -> Health | None:
        """Return the health to send now, or None if no health message is due."""
        if not self.due:
            return None
        self.due = False
        health = self.current()
        if health == self.last_sent:
            return None
        self.last_sent = health
        return health

    async def tick(self, interval: float) -> NoReturn:
        """Make the health due every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            self.make_due()
