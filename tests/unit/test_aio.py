"""The agent's asyncio helpers: which tasks they cancel or await, and which errors they raise or log."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from agent.aio import cancel_and_wait, cancelled_on_exit, first_of, run_in_event_loop, run_until_set


class Worker:
    """A task that runs until it is cancelled. The clean-up of the task takes one turn of the event loop."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.cleaned = False
        self.task = asyncio.create_task(self.run(), name="worker")

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned = True
            if self.error:
                raise self.error


async def fail() -> NoReturn:
    raise ValueError("failed before")


async def test_cancel_and_wait_returns_after_the_clean_up_of_each_task() -> None:
    first, second = Worker(), Worker()
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await cancel_and_wait(first.task, second.task)
    assert (first.cleaned, second.cleaned, logs) == (True, True, [])


async def test_cancel_and_wait_without_tasks_returns() -> None:
    await cancel_and_wait()


async def test_an_error_during_the_cancellation_is_logged_and_not_raised() -> None:
    worker = Worker(ValueError("broken clean-up"))
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await cancel_and_wait(worker.task)
    assert [(line["task"], line["error"]) for line in logs] == [("worker", "ValueError('broken clean-up')")]


async def test_ignored_errors_are_neither_logged_nor_raised() -> None:
    worker = Worker(ValueError("broken clean-up"))
    failed = asyncio.create_task(fail())
    await asyncio.wait({failed})
    with capture_logs() as logs:
        await cancel_and_wait(worker.task, failed, ignore_errors=True)
    assert logs == []


async def test_the_error_of_an_ended_task_stays_with_the_task() -> None:
    failed = asyncio.create_task(fail())
    await asyncio.wait({failed})
    with capture_logs() as logs:
        await cancel_and_wait(failed)
    assert logs == []
    with pytest.raises(ValueError, match="failed before"):
        failed.result()


async def test_first_of_returns_when_a_task_ends_and_lets_the_others_run() -> None:
    worker = Worker()
    async with cancelled_on_exit(worker.task):
        done = asyncio.create_task(asyncio.sleep(0))
        await first_of(worker.task, done, asyncio.Event())
        assert (done.done(), worker.task.done()) == (True, False)
    assert worker.cleaned


async def test_first_of_returns_when_an_event_is_set() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    await first_of(asyncio.Event(), event)
    assert event.is_set()


async def test_first_of_returns_at_the_timeout() -> None:
    await first_of(asyncio.Event(), timeout=0.0)


async def test_run_until_set_returns_the_ended_task() -> None:
    task = await run_until_set(asyncio.sleep(0, "result"), asyncio.Event(), name="work")
    assert task is not None
    assert (task.result(), task.get_name()) == ("result", "work")


async def test_run_until_set_cancels_the_work_when_the_event_is_set() -> None:
    event, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asyncio.get_running_loop().call_soon(event.set)
    assert await run_until_set(work(), event, name="work") is None
    assert ended.is_set()


async def test_the_tasks_of_a_block_are_cancelled_when_the_block_raises() -> None:
    worker = Worker()

    async def block() -> None:
        async with cancelled_on_exit(worker.task):
            await asyncio.sleep(0)
            await fail()

    with pytest.raises(ValueError, match="failed before"):
        await block()
    assert worker.cleaned


def test_an_interruption_waits_for_the_construction_of_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    build = asyncio.events.new_event_loop
    loops: list[asyncio.AbstractEventLoop] = []

    def build_interrupted() -> asyncio.AbstractEventLoop:
        os.kill(os.getpid(), signal.SIGINT)
        loops.append(build())
        return loops[0]

    monkeypatch.setattr(asyncio.events, "new_event_loop", build_interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_in_event_loop(lambda: asyncio.sleep(60))
    assert [loop.is_closed() for loop in loops] == [True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
