"""Waiting in tests: until the state of a fake, or any other condition, is as the test needs.

A wait ends when its condition is true. If the condition stays false until the deadline, the wait fails. The failure
names what the test waited for and shows the state at that moment. `Changing` is the base class of every fake.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# Seconds until a wait of a test fails. A busy machine needs several seconds. The time limits of the tests are longer.
DEADLINE = 30.0
# Seconds until a wait fails that spans faults of the cluster or of a stream, or the start of an agent process.
LONG = 55.0
# Seconds between two checks of a condition whose change notifies no task.
POLL = 0.001


class Changing:
    """Base of the fakes. A fake calls `notify` after each change of its state, and lives as long as its test."""

    changed: asyncio.Condition

    def describe(self) -> str:
        """Return the state of the fake as a text for the message of a failed wait."""
        return repr(self)

    async def until(self, what: str, condition: Callable[[], bool], seconds: float = DEADLINE) -> None:
        """Wait until `condition()` is true. `what` describes the condition.

        Raises:
            AssertionError: the condition was false for `seconds`. The message names `what`.
        """
        try:
            async with asyncio.timeout(seconds):
                await self.wait_for(condition)
        except TimeoutError:
            raise AssertionError(failure(what, seconds, self.describe())) from None

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition()` is true, without a deadline.

        Only the server code of a fake may call this method. Tests call `until`.
        """
        async with self.changed:
            await self.changed.wait_for(condition)

    async def notify(self) -> None:
        """Let every waiting task check its condition again."""
        async with self.changed:
            self.changed.notify_all()


async def poll_until(
    what: str, condition: Callable[[], bool], seconds: float = DEADLINE, describe: Callable[[], str] = str
) -> None:
    """Poll until a condition is true. Use this function for a condition whose change notifies no task.

    Raises:
        AssertionError: the condition was false for `seconds`. The message names `what`.
    """
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(failure(what, seconds, describe()))
        await asyncio.sleep(POLL)


def failure(what: str, seconds: float, state: str) -> str:
    """Return the message of a wait that failed. `what` describes the condition, and `state` the state of the fake."""
    return f"waited {seconds:g} s for: {what}\n{state}".rstrip()
