"""The client-side limit of requests: how many, and who goes first."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from agent.cluster.api.rate_limit import Priority, TokenBucket, priority_of

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Time that passes by hand: what the bucket asks for, and the timer that it sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, call: Callable[[], None]) -> Clock:
        self.due = [(self.now + delay, call)]
        return self

    def cancel(self) -> None:
        self.due.clear()

    async def pass_by(self, seconds: float) -> None:
        """Let time pass, with all that falls due in it."""
        end = self.now + seconds
        while self.due and self.due[0][0] <= end + 1e-9:
            self.now, call = self.due.pop()
            call()
        self.now = end
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", clock.call_later)
    return clock


class Line:
    """Requests that take their turns, and the order in which they got them."""

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, priority: Priority = Priority.RUNNING) -> None:
        async def turn() -> None:
            await self.bucket.acquire(priority)
            self.served.append(name)

        self.tasks[name] = asyncio.create_task(turn())
        await asyncio.sleep(0)


async def emptied(rate: float) -> TokenBucket:
    bucket = TokenBucket(rate)
    for _ in range(int(2 * rate)):
        await bucket.acquire()
    return bucket


async def test_a_burst_passes_and_then_the_rate(clock: Clock) -> None:
    line = Line(await emptied(10))
    for number in range(5):
        await line.ask(str(number))
    assert line.served == []
    await clock.pass_by(0.1)
    assert line.served == ["0"]
    await clock.pass_by(0.3)
    assert line.served == ["0", "1", "2", "3"]
    await clock.pass_by(0.1)
    assert line.served == ["0", "1", "2", "3", "4"]


async def test_no_more_than_a_burst_is_saved_up(clock: Clock) -> None:
    line = Line(await emptied(10))
    await clock.pass_by(1000)
    for number in range(21):
        await line.ask(str(number))
    assert len(line.served) == 20
    await clock.pass_by(0.1)
    assert len(line.served) == 21


async def test_ranks_go_before_the_order_of_coming(clock: Clock) -> None:
    line = Line(await emptied(10))
    await line.ask("pod 1", Priority.NEW)
    await line.ask("pod 2", Priority.NEW)
    await line.ask("log", Priority.RUNNING)
    await line.ask("delete", Priority.RUNNING)
    await line.ask("lease", Priority.ALIVE)
    await clock.pass_by(0.2)
    await line.ask("lease again", Priority.ALIVE)
    await clock.pass_by(1)
    assert line.served == ["lease", "log", "lease again", "delete", "pod 1", "pod 2"]


async def test_nobody_overtakes_who_waits_when_tokens_come(clock: Clock) -> None:
    line = Line(await emptied(10))
    await line.ask("first")
    clock.now += 0.15  # there is a token, and the timer has not run yet
    await line.ask("second")
    await clock.pass_by(0.2)
    assert line.served == ["first", "second"]


async def test_who_gives_up_costs_nothing(clock: Clock) -> None:
    line = Line(await emptied(10))
    await line.ask("gone")
    await line.ask("stays")
    line.tasks["gone"].cancel()
    await clock.pass_by(0.1)
    assert line.served == ["stays"]


async def test_who_gives_up_at_its_turn_leaves_it_to_the_next(clock: Clock) -> None:
    bucket = await emptied(10)
    line = Line(bucket)
    await line.ask("gone")
    await line.ask("stays")
    clock.now += 0.1
    bucket.serve()  # its turn, of which its task has not heard yet
    line.tasks["gone"].cancel()
    await clock.pass_by(0.0)
    assert line.served == ["stays"]


@pytest.mark.parametrize(
    ("verb", "resource", "expected"),
    [
        ("patch", "leases", Priority.ALIVE),
        ("create", "leases", Priority.ALIVE),
        ("list", "pods", Priority.ALIVE),
        ("list", "events", Priority.RUNNING),
        ("watch", "pods", Priority.ALIVE),
        ("get", "version", Priority.ALIVE),
        ("get", "pods/log", Priority.RUNNING),
        ("create", "pods/exec", Priority.RUNNING),
        ("create", "secrets", Priority.RUNNING),
        ("delete", "pods", Priority.RUNNING),
        ("patch", "pods", Priority.RUNNING),
        ("create", "pods", Priority.NEW),
    ],
)
def test_the_rank_of_a_request(verb: str, resource: str, expected: Priority) -> None:
    assert priority_of(verb, resource) is expected
