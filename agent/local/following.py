"""What `run` and `submit` share: following a pipeline to its end, and counting interruptions.

Both live as long as one command on a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, TypeVar

from agent.errors import AgentError
from agent.local import messages
from agent.local.report import Report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from agent.local.console import View
    from agent.local.wire import local_pb2 as wire

Shown = TypeVar("Shown")


class OutputClosed(AgentError):
    """Nobody reads what is shown any more."""


class Interruptions:
    """Ctrl-C, counted: the first asks to end, the second insists."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def interrupt(self) -> None:
        """Count one."""
        (self.second if self.first.is_set() else self.first).set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Count the signals of the process meanwhile."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.interrupt)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


class Follower:
    """Shows a pipeline and remembers how it went; `position` is of the last event shown."""

    def __init__(self, view: View) -> None:
        self.view: View | None = view
        self.report = Report()
        self.position = 0

    async def follow(self, stream: AsyncIterator[wire.PipelineEvent]) -> None:
        """Show events until they end.

        Raises:
            OutputClosed: the output cannot be written; called again, it goes on silently.
        """
        async for message in stream:
            event = messages.decode(message)
            self.position = message.position
            if event is None:
                continue
            self.report.add(event)
            if self.view is not None:
                await self.shown(self.view.show, event)

    async def close(self) -> None:
        """Show how it went.

        Raises:
            OutputClosed: the output cannot be written.
        """
        if self.view is not None:
            await self.shown(self.view.close, self.report)

    async def shown(self, show: Callable[[Shown], None], what: Shown) -> None:
        """Show something on a thread: a terminal that is held, or a full pipe, must not hold the loop."""
        try:
            await asyncio.to_thread(show, what)
        except OSError as error:
            self.view = None
            mute()
            raise OutputClosed(f"the output cannot be written: {error.strerror}") from error


def mute() -> None:
    """Let nothing more go to a standard output that is closed, also not when the interpreter ends."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.__stdout__.fileno() if sys.__stdout__ else null)
        os.close(null)


def say(text: str) -> None:
    """Tell the person something beside the pipeline's own output."""
    sys.stderr.write(f"sealci-agent: {text}\n")
    sys.stderr.flush()


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for it; its result was taken elsewhere."""
    task.cancel()
    await asyncio.wait({task})
