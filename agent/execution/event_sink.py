"""Where a session's events go, as the session sees it; `scheduler.outbox` implements it.

An outlet lives as long as its session: it numbers the events, keeps them until the scheduler has acknowledged them and
sends them again after a reconnect. Its window bounds the memory: `send` waits while it is full, so that the log of the
environment is not read faster than the scheduler stores it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event


class SessionSink(Protocol):
    """The way out of one session."""

    async def send(self, event: Event) -> None:
        """Take the event into the window, waiting while it is full. Not yet delivered when it returns."""

    async def wait_until_stored(self) -> None:
        """Wait until everything that was sent is acknowledged."""

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Send files beside the stream; returns when the scheduler says that all are stored.

        Raises:
            SchedulerError: it broke; the caller starts again from the first file.
            Exception: whatever `parts` raises.
        """

    def restart(self, seq: int) -> None:
        """Forget what was sent, and number from `seq` + 1 on: the scheduler is told again from there."""

    def close(self) -> None:
        """Forget the session: nothing more will be sent of it."""


class EventSink(Protocol):
    """Gives every session its outlet."""

    def open(self, key: Key, *, adopted: bool = False) -> SessionSink:
        """Return the outlet of a new session; one that was adopted sends nothing before the scheduler says where."""
