"""Follow a pipeline to its end on a terminal, and count interruptions. `run` and `submit` share both.

The objects of this module live as long as the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import structlog

from agent.aio import cancel_and_wait, first_of
from agent.console import terminal_text
from agent.console.reports.run_report import Report
from agent.domain.errors import AgentError
from agent.pipeline import event_codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agent.console.view import View
    from agent.pipeline.wire import local_pb2 as wire

log = structlog.get_logger()

# Seconds between two updates of the times in the view.
TICK_SECONDS = 0.12
# Seconds until a notice is dropped, because the terminal is stopped or a shell uses it.
NOTICE_SECONDS = 2.0


class OutputClosed(AgentError):
    """The reader of the output has closed the output."""


class ViewFailed(OutputClosed):
    """The view has a fault of its own and shows nothing more."""


class Interruptions:
    """Counts Ctrl-C for one command. The first asks the command to end. The second makes it exit at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def interrupt(self) -> None:
        """Count one Ctrl-C of the user. SIGTERM counts as a Ctrl-C too."""
        (self.second if self.first.is_set() else self.first).set()

    def hang_up(self) -> None:
        """Ask the command to end, because the terminal was closed.

        A repeated SIGHUP has no effect, because the kernel and the shell both send SIGHUP for one closed terminal.
        """
        self.first.set()

    @contextlib.contextmanager
    def count_signals(self) -> Iterator[None]:
        """Count SIGINT, SIGTERM and SIGHUP of this process as interruptions while the block runs."""
        loop = asyncio.get_running_loop()
        # A closed terminal (SIGHUP) is an interruption too, except under nohup, which makes the process ignore SIGHUP.
        hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        numbers = [signal.SIGINT, signal.SIGTERM, *hang_up]
        for number in numbers:
            loop.add_signal_handler(number, self.hang_up if number is signal.SIGHUP else self.interrupt)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


class Follower:
    """Passes the events of one pipeline to its view, and collects them in a report. The command owns it.

    `position` is the position of the last event shown. Only the holder of the lock `screen` may write to the terminal.
    """

    def __init__(self, view: View) -> None:
        self.view: View | None = view
        self.report = Report()
        self.position = 0
        self.screen = asyncio.Lock()

    async def follow(self, stream: AsyncIterator[wire.PipelineEvent]) -> None:
        """Show the events until the stream ends.

        Raises:
            OutputClosed: the output cannot be written. A further call continues without a view.
        """
        clock = asyncio.create_task(self.tick_until_closed(), name="clock of the view")
        events = asyncio.create_task(self.show_events(stream), name="events of the pipeline")
        try:
            await first_of(clock, events)
            if clock.done():
                clock.result()
            await events
        finally:
            # The first error of the two tasks is already raised. The other task often fails for the same cause, so its
            # error is ignored.
            await cancel_and_wait(clock, events, ignore_errors=True)

    async def show_events(self, stream: AsyncIterator[wire.PipelineEvent]) -> None:
        """Show the events until the stream ends.

        Events of a newer scheduler that this version does not know are skipped.
        """
        async for message in stream:
            event = event_codec.decode(message)
            self.position = message.position
            if event is None:
                continue
            self.report.add(event)
            async with self.screen:
                await self.call_view("show", event)

    async def tick_until_closed(self) -> None:
        """Update the times in the view at an interval. Returns when the output is closed."""
        while self.view is not None:
            await asyncio.sleep(TICK_SECONDS)
            async with self.screen:
                await self.call_view("tick")

    @contextlib.asynccontextmanager
    async def exclusive_screen(self) -> AsyncIterator[None]:
        """Give the terminal to the caller while the block runs.

        Raises:
            OutputClosed: the output cannot be written.
        """
        async with self.screen:
            await self.call_view("hold")
            yield

    async def notify(self, text: str) -> None:
        """Print a notice on standard error. The notice is dropped if the terminal is not free in time."""
        with contextlib.suppress(TimeoutError, OutputClosed):
            async with asyncio.timeout(NOTICE_SECONDS), self.exclusive_screen():
                await asyncio.to_thread(print_notice, text)

    async def close(self) -> None:
        """Show the result of the pipeline.

        Raises:
            OutputClosed: the output cannot be written.
        """
        async with self.screen:
            await self.call_view("close", self.report)

    async def call_view(self, method: str, *arguments: object) -> None:
        """Call a method of the view on a thread. A stopped terminal or a full pipe must not block the event loop.

        Raises:
            OutputClosed: the output cannot be written.
        """
        if self.view is None:
            return
        try:
            await asyncio.to_thread(getattr(self.view, method), *arguments)
        except OSError as error:
            self.abandon_view()
            discard_standard_output()
            raise OutputClosed(f"the output cannot be written: {error.strerror}") from error
        except Exception as error:
            self.abandon_view()
            log.info("the view failed", exc_info=error)
            raise ViewFailed(f"the output cannot be shown: {type(error).__name__}: {error}") from error

    def abandon_view(self) -> None:
        """Call the view no more. Later notices go to standard error."""
        if self.view is not None:
            self.view.abandon()
        self.view = None


def discard_standard_output() -> None:
    """Connect standard output to /dev/null. Otherwise Python's flush at exit would fail on the closed pipe."""
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.__stdout__.fileno() if sys.__stdout__ else null)
        os.close(null)


def print_notice(text: str) -> None:
    """Print a notice on standard error, apart from the pipeline's own output. Its further lines are indented."""
    sys.stderr.write("\n  ".join(terminal_text.lines(f"sealci-agent: {text}")) + "\n")
    sys.stderr.flush()
