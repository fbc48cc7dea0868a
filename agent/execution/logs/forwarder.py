"""Forwards the log of an environment to the scheduler: reads it, takes the markers out, masks secrets, sends.

The objects live as long as the environment writes. The markers show which command runs, and never decide the outcome.
While the session's window is full, the log is not read, so the memory is bounded whatever the commands write.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.domain.events import CommandFinished, CommandStarted
from agent.domain.observations import LogGap, LogLost, LogPiece, MarkerKind
from agent.execution.logs.pipeline import Limits, LogStream, MarkerSeen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.events import LogChunk
    from agent.execution.ports import Environment
    from agent.execution.session import Session
    from agent.settings import Settings


# Maximum number of bytes of log that are processed before other tasks of the agent can run. If secrets match
# everywhere, this takes about 30 milliseconds.
PORTION = 8 * 1024


async def send_log(session: Session, environment: Environment, settings: Settings) -> None:
    """Send the part of the log that the scheduler has not stored. Returns at the end of the log."""
    start = session.progress.log_start
    limits = Limits(line=settings.logs.max_line, total=settings.logs.max_total)
    # Each reading of the log needs a copy of the masker, because a masker keeps state. The first call of `masker` runs
    # on a thread, because many and long secrets have thousands of forms to compute.
    masker = copy(await asyncio.to_thread(session.reporter.masker))
    if not start.total:
        if masker.too_short:
            await session.reporter.write_log(f"[not masked, because too short: {', '.join(masker.too_short)}]")
        if masker.too_long:
            await session.reporter.write_log(f"[masked in part, because too long: {', '.join(masker.too_long)}]")
    stream = LogStream(environment.markers, masker, limits, start)
    clock = CommandClock(start.command)
    async with aclosing(environment.log(start)) as items:
        async for item in items:
            if isinstance(item, LogLost):
                await session.reporter.write_log(f"[the log ends here: {item.why}]")
                continue
            if isinstance(item, LogGap):
                for out in stream.gap(item):
                    await pass_on(session, out, clock)
                continue
            for portion in portions(item):
                for out in stream.feed(portion):
                    await pass_on(session, out, clock)
                await asyncio.sleep(0)
            environment.log_ended(stream.ended)
    for out in stream.finish():
        await pass_on(session, out, clock)
    session.stats.log_ended(stream)


def portions(piece: LogPiece) -> Iterator[LogPiece]:
    """Yield a piece in parts of at most `PORTION` bytes.

    `end` of each part stays the end of the whole piece. `LogStream` uses it only to compute where the line starts.
    """
    if len(piece.data) <= PORTION:
        yield piece
        return
    for start in range(0, len(piece.data), PORTION):
        yield replace(piece, data=piece.data[start : start + PORTION])


class CommandClock:
    """Times the command that runs now. A command that was running at the adoption is timed from the adoption on."""

    def __init__(self, command: int) -> None:
        self.command = command
        self.began = time.monotonic()

    def start(self, command: int) -> None:
        self.command, self.began = command, time.monotonic()

    def stop(self) -> float:
        """Return the seconds since the start of the command. No command runs afterwards."""
        self.command = 0
        return time.monotonic() - self.began


async def pass_on(session: Session, out: LogChunk | MarkerSeen, clock: CommandClock) -> None:
    """Send a chunk of the log, or the event that a marker stands for."""
    if not isinstance(out, MarkerSeen):
        await session.reporter.send(out)
        return
    marker = out.marker
    if marker.kind is MarkerKind.STARTED:
        clock.start(marker.command)
        session.progress.command_started(marker.command)
        await session.reporter.send(CommandStarted(marker.command, out.cursor))
        return
    # A command that ends the shell (`exit 3`) has no end marker. The last marker of the log ends this command too.
    if clock.command:
        command, seconds = clock.command, clock.stop()
        session.stats.command_finished(seconds)
        await session.reporter.send(CommandFinished(command, marker.exit_code or 0, seconds, out.cursor))
