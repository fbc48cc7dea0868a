"""What a log follower knows of its pod (`LogSource`), and how long the follower waits (`Timings`)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from agent.aio import cancel_and_wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class LogState(Enum):
    """What the state of the pod means for its log."""

    # Container `helper` has not started.
    WAITING = "waiting"
    # Container `helper` runs, and the commands have not ended.
    OPEN = "open"
    # Container `helper` runs, and the commands have ended. The end of the log is near.
    ENDING = "ending"
    # Container `helper` has ended. Only what the node has of its stdout can be read.
    ABANDONED = "abandoned"
    # Container `helper` has ended before the commands, because a service was not ready. No command has started.
    UNUSED = "unused"
    # The pod is gone.
    GONE = "gone"


class Way(Enum):
    """How a part of the log is read."""

    # From the helper's stdout, by a request that stays open.
    STREAM = "stream"
    # From the file, by an exec: until the end of the log, or until the present end of the file.
    FILE = "file"
    CATCH_UP = "catch up"
    # From what the node has of the stdout of a helper that has ended.
    NODE = "node"


class LogSource(Protocol):
    """The pod whose log is read. The caller implements it from its watch and owns it."""

    @property
    def state(self) -> LogState:
        """The current state of the log."""

    async def wait_while(self, state: LogState) -> None:
        """Wait until the log is no longer in this state."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that a `LogFollower` waits. All followers share one instance."""

    connect: float = 10.0
    """Seconds until a connection is given up."""
    read: float = 30.0
    """Seconds without a byte until a plain read is given up."""
    probe: float = 30.0
    """Seconds of silence until an open stream is probed by a plain read. Doubles while the silence lasts."""
    longest_probe: float = 300.0
    torn: float = 1.0
    """Seconds of silence within a frame until the rest of the frame is given up."""
    settle: float = 1.0
    """Seconds of silence after the end of the commands until the rest of the log is read from its file."""
    pause: float = 0.1
    """Seconds of the longest possible pause after the first failure. Doubles while nothing is read."""
    longest_pause: float = 5.0
    steady: float = 5.0
    """Seconds that a stream must last so that its end is not a failure."""
    refused: float = 10.0
    """Seconds of retries after an answer that looks final, such as 400, 403 or 404."""
    give_up: float = 60.0
    """Seconds of retries for a part of the log that only one way can bring."""
    longest_retry_after: float = 60.0
    window: float = 0.25
    """Seconds over which the speed of the log is measured."""


DEFAULT_TIMINGS = Timings()


@asynccontextmanager
async def change_of(source: LogSource, state: LogState) -> AsyncIterator[asyncio.Task[None]]:
    """Yield a task that ends when the log is no longer in this state."""
    task = asyncio.create_task(source.wait_while(state), name="log: change of state")
    try:
        yield task
    finally:
        await cancel_and_wait(task, ignore_errors=True)
