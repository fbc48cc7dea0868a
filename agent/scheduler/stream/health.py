"""When the scheduler is told how the agent is: at the interval that it named, and at once on change.

One reporter lives as long as the process. It keeps no health of its own: a callable gives the current one at the moment
of sending, so that ten changes in a row are one message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.session_state import Health


class HealthReporter:
    """Decides when health is due. `wake` is the event on which the writer of the stream waits (`Outbox.wake`)."""

    def __init__(self, current: Callable[[], Health], wake: asyncio.Event) -> None:
        self.current = current
        self.wake = wake
        self.last: Health | None = None
        self.due = False

    def changed(self) -> None:
        """Say that the health may have changed; it is sent at once if it has."""
        self.due = True
        self.wake.set()

    def forget(self) -> None:
        """Make health due although nothing changed: its interval is over, or the stream is new."""
        self.last = None
        self.changed()

    def take(self) -> Health | None:
        """Return the health that is to be sent now, None when none is due."""
        if not self.due:
            return None
        self.due = False
        health = self.current()
        if health == self.last:
            return None
        self.last = health
        return health

    async def tick(self, interval: float) -> NoReturn:
        """Make health due every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            self.forget()
