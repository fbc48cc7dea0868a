"""The watchdog ends the agent's process if and only if the event loop is blocked."""

from __future__ import annotations

import asyncio
import time

from agent.app.watchdog import STOOD_STILL, Watchdog


async def test_a_loop_that_stands_still_ends_the_process() -> None:
    codes: list[int] = []
    with Watchdog(codes.append, turn=0.01, stalled=0.1) as watchdog:
        end = time.monotonic() + 10
        while not codes and time.monotonic() < end:
            time.sleep(0.01)  # noqa: ASYNC251 - the test blocks the loop
    assert codes == [STOOD_STILL]
    watchdog.thread.join(10)
    assert not watchdog.thread.is_alive()


async def test_a_loop_that_turns_is_left_alone() -> None:
    codes: list[int] = []
    with Watchdog(codes.append, turn=0.01, stalled=1.0) as watchdog:
        await asyncio.sleep(0.1)
    watchdog.thread.join(10)
    assert codes == []
    assert not watchdog.thread.is_alive()
