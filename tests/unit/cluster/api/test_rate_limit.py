"""The client-side rate limit in virtual time: how many requests pass, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from agent.cluster.api.rate_limit import Priority, TokenBucket, priority_of

pytestmark = pytest.mark.looptime

# Seconds until a token bucket gives the next token in these tests. A test checks the result shortly after a token is
# due, never at that very moment.
TOKEN = 0.1
SHORTLY = 0.01


class Requests:
    """Requests that wait for tokens of one token bucket, and the order in which they got their tokens."""

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, priority: Priority = Priority.RUNNING) -> None:
        async def acquire() -> None:
            await self.bucket.acquire(priority)
            self.served.append(name)

        self.tasks[name] = asyncio.create_task(acquire())
        await asyncio.sleep(0)  # One turn of the event loop starts the new task.

    async def pass_time_without_timer(self, seconds: float) -> None:
        """Advance the virtual time without a run of the bucket's timer, as a busy event loop runs timers late."""
        assert self.bucket.timer is not None
        self.bucket.timer.cancel()
        await asyncio.sleep(seconds)


async def after_burst() -> Requests:
    """Return requests to a token bucket whose burst is used up.

    This function is no fixture, because virtual time begins only with the test itself.
    """
    requests = Requests(TokenBucket(1 / TOKEN))
    for _ in range(20):
        await requests.bucket.acquire()
    await asyncio.sleep(SHORTLY)
    return requests


async def test_a_burst_passes_and_then_the_rate() -> None:
    requests = await after_burst()
    for number in range(5):
        await requests.ask(str(number))
    assert requests.served == []
    await asyncio.sleep(TOKEN)
    assert requests.served == ["0"]
    await asyncio.sleep(3 * TOKEN)
    assert requests.served == ["0", "1", "2", "3"]
    await asyncio.sleep(TOKEN)
    assert requests.served == ["0", "1", "2", "3", "4"]


async def test_the_bucket_saves_no_more_than_a_burst() -> None:
    requests = await after_burst()
    await asyncio.sleep(1000)
    for number in range(21):
        await requests.ask(str(number))
    assert len(requests.served) == 20
    await asyncio.sleep(TOKEN + SHORTLY)
    assert len(requests.served) == 21


async def test_priorities_go_before_the_order_of_arrival() -> None:
    requests = await after_burst()
    await requests.ask("pod 1", Priority.NEW)
    await requests.ask("pod 2", Priority.NEW)
    await requests.ask("log", Priority.RUNNING)
    await requests.ask("delete", Priority.RUNNING)
    await requests.ask("lease", Priority.ALIVE)
    await asyncio.sleep(2 * TOKEN)
    await requests.ask("second lease", Priority.ALIVE)
    await asyncio.sleep(1)
    assert requests.served == ["lease", "log", "second lease", "delete", "pod 1", "pod 2"]


async def test_a_new_request_does_not_overtake_when_the_timer_is_late() -> None:
    requests = await after_burst()
    await requests.ask("first")
    await requests.pass_time_without_timer(1.5 * TOKEN)
    await requests.ask("second")
    await asyncio.sleep(TOKEN)
    assert requests.served == ["first", "second"]


async def test_a_cancelled_request_uses_no_token() -> None:
    requests = await after_burst()
    await requests.ask("cancelled")
    await requests.ask("stays")
    requests.tasks["cancelled"].cancel()
    await asyncio.sleep(TOKEN)
    assert requests.served == ["stays"]


async def test_a_request_that_is_cancelled_at_its_turn_leaves_the_token_to_the_next() -> None:
    requests = await after_burst()
    await requests.ask("cancelled")
    await requests.ask("stays")
    await requests.pass_time_without_timer(TOKEN)
    requests.bucket.serve()  # The bucket gives a token to the first task, which has not run yet.
    requests.tasks["cancelled"].cancel()
    now = asyncio.get_running_loop().time()
    await requests.tasks["stays"]
    assert asyncio.get_running_loop().time() == pytest.approx(now)
    assert requests.served == ["stays"]


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
def test_the_priority_of_a_request(verb: str, resource: str, expected: Priority) -> None:
    assert priority_of(verb, resource) is expected
