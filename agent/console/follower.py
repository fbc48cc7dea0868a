"""What `run` and `submit` share: following a pipeline to its end, and counting interruptions.

Both live as long as one command on a terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from agent.console.run_report import Report
from agent.domain.errors import AgentError
from agent.pipeline import event_codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agent.console.view import View
    from agent.pipeline.wire import local_pb2 as wire

TICK = 0.12
PATIENCE = 2.0


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
        # A terminal that is closed ends the pipeline too, unless nohup wants it to go on.
        hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        numbers = [signal.SIGINT, signal.SIGTERM, *hang_up]
        for number in numbers:
            loop.add_signal_handler(number, self.interrupt)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


class Follower:
    """Shows a pipeline and remembers how it went; `position` is of the last event shown.

    Whoever holds `screen` has the terminal for itself.
    """

    def __init__(self, view: View) -> None:
        self.view: View | None = view
        self.report = Report()
        self.position = 0
        self.screen = asyncio.Lock()

    async def follow(self, stream: AsyncIterator[wire.PipelineEvent]) -> None:
        """Show events until they end, and between them that time goes by.

        Raises:
            OutputClosed: the output cannot be written; called again, it goes on silently.
        """
        clock = asyncio.create_task(self.tick(), name="clock of the view")
        taking = asyncio.create_task(self.take(stream), name="events of the pipeline")
        try:
            await asyncio.wait({clock, taking}, return_when=asyncio.FIRST_COMPLETED)
            if clock.done():
                clock.result()
            await taking
        finally:
            await end(clock)
            await end(taking)

    async def take(self, stream: AsyncIterator[wire.PipelineEvent]) -> None:
        """Show events until they end."""
        async for message in stream:
            event = event_codec.decode(message)
            self.position = message.position
            if event is None:
                continue
            self.report.add(event)
            async with self.screen:
                await self.shown("show", event)

    async def tick(self) -> None:
        """Let the view show that time goes by; returns when there is nothing to show on."""
        while self.view is not None:
            await asyncio.sleep(TICK)
            async with self.screen:
                await self.shown("tick")

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Give the terminal to somebody else meanwhile.

        Raises:
            OutputClosed: the output cannot be written.
        """
        async with self.screen:
            await self.shown("hold")
            yield

    async def tell(self, text: str) -> None:
        """Tell the person something beside the pipeline's own output; a terminal that is held up is not waited for."""
        with contextlib.suppress(TimeoutError, OutputClosed):
            async with asyncio.timeout(PATIENCE), self.held():
                await asyncio.to_thread(say, text)

    async def close(self) -> None:
        """Show how it went.

        Raises:
            OutputClosed: the output cannot be written.
        """
        async with self.screen:
            await self.shown("close", self.report)

    async def shown(self, method: str, *what: object) -> None:
        """Call the view on a thread: a terminal that is held, or a full pipe, must not hold the loop.

        Raises:
            OutputClosed: the output cannot be written.
        """
        if self.view is None:
            return
        try:
            await asyncio.to_thread(getattr(self.view, method), *what)
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
