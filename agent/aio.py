"""Shared pieces of asyncio: run an event loop, wait for the first of several tasks or events, cancel tasks and wait.

`task.cancel()` only asks a task to end. A caller that continues before the task has ended leaks the task, or races with
the clean-up of the task. Every part of the agent therefore ends its tasks through this module. Nothing here keeps
state, and nothing here knows the agent.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

log = structlog.get_logger(__name__)

T = TypeVar("T")

# The signals that must not interrupt the construction of an event loop.
DELAYED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run_in_event_loop(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run the coroutine that `main` returns to its end in a new event loop, and return its result.

    A KeyboardInterrupt in the middle of the construction of an event loop leaves an incomplete loop, and Python reports
    this loop with a traceback. The handlers of signals are therefore called after the construction.

    Raises:
        KeyboardInterrupt: SIGINT arrived. The coroutine was cancelled and has ended.
    """
    runner = asyncio.Runner()
    with delayed_signals() as arrived:
        runner.get_loop()
    with runner:
        for number in arrived:
            signal.raise_signal(number)
        coroutine = main()
        try:
            return runner.run(coroutine)
        finally:
            # Does nothing, unless a signal arrived before the coroutine began.
            coroutine.close()


@contextmanager
def delayed_signals() -> Iterator[list[int]]:
    """Call no handler of Python for the signals that arrive in the block. Yield the list of these signals."""
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in DELAYED_SIGNALS}
    python_handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in python_handlers:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield arrived
    finally:
        for number, handler in python_handlers.items():
            signal.signal(number, handler)


async def cancel_and_wait(*tasks: asyncio.Task[Any], ignore_errors: bool = False) -> None:
    """Cancel the tasks that still run and wait until all of them have ended.

    Never raises the error of a task. An error that a task raises while it is being cancelled is logged. With
    `ignore_errors` the errors of all tasks are dropped, including errors that a task raised before the call.
    """
    running = {task for task in tasks if not task.done()}
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
    for task in tasks if ignore_errors else running:
        # Reading the exception keeps asyncio from reporting "Task exception was never retrieved".
        if not task.cancelled() and (error := task.exception()) and not ignore_errors:
            log.warning("a task failed while it was cancelled", task=task.get_name(), error=repr(error))


async def first_of(*awaited: asyncio.Future[Any] | asyncio.Event, timeout: float | None = None) -> None:
    """Wait until a future is done, an event is set, or `timeout` seconds are over.

    Futures and tasks are not cancelled and their errors are not raised: ask `done()` or `is_set()` afterwards.
    """
    futures = [each for each in awaited if not isinstance(each, asyncio.Event)]
    events = [each for each in awaited if isinstance(each, asyncio.Event)]
    waiters = [asyncio.create_task(event.wait(), name="wait for an event") for event in events]
    try:
        await asyncio.wait({*futures, *waiters}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(*waiters)


async def run_until_set(work: Coroutine[Any, Any, T], event: asyncio.Event, *, name: str) -> asyncio.Task[T] | None:
    """Run `work` in a task called `name` until the work ends or `event` is set.

    Returns the ended task, or None if the event was set first. In the second case the task has been cancelled and has
    ended.
    """
    task = asyncio.create_task(work, name=name)
    async with cancelled_on_exit(task):
        await first_of(task, event)
        return task if task.done() else None


@asynccontextmanager
async def cancelled_on_exit(*tasks: asyncio.Task[Any]) -> AsyncIterator[None]:
    """Cancel the tasks when the block ends, with or without an error, and wait until the tasks have ended."""
    try:
        yield
    finally:
        await cancel_and_wait(*tasks)
