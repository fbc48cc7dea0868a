"""Reads the log of an environment, removes the markers, masks secrets, and sends the log to the scheduler.

The objects live until the log of the environment ends. The markers show which command runs, and never decide the
outcome. While the session's window of unacknowledged events is full, the agent does not read the log. The memory is
therefore bounded, whatever the commands write.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from copy import copy
from typing import TYPE_CHECKING

from agent.domain.events import CommandFinished, CommandStarted
from agent.domain.observations import LogEnd, LogGap, LogLost, LogPiece, MarkerKind
from agent.execution.logs.pipeline import LogStream, MarkerSeen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.events import LogChunk
    from agent.execution.logs.masking import Masker
    from agent.execution.ports import Environment
    from agent.execution.session import Session
    from agent.settings import Settings


# Number of bytes of log that are searched for secrets at once, before other tasks of the agent run. With secrets that
# match everywhere the search takes about 30 milliseconds.
PORTION = 8 * 1024
# Number of bytes that count for each piece in addition to its own bytes, because many small pieces take time too.
PIECE_COST = 256


async def send_log(session: Session, environment: Environment, settings: Settings) -> None:
    """Send the part of the log that the scheduler has not stored. Returns at the end of the log."""
    start = session.progress.log_start
    # The masker is copied, because a masker keeps state while it reads a log. The first call of `masker` runs on a
    # thread, because many or long secrets have thousands of forms.
    masker = copy(await asyncio.to_thread(session.reporter.masker))
    if not start.offset:
        if masker.too_short:
            await session.reporter.write_log(f"[not masked, because too short: {', '.join(masker.too_short)}]")
        if masker.too_long:
            await session.reporter.write_log(f"[masked in part, because too long: {', '.join(masker.too_long)}]")
    stream = LogStream(environment.markers, masker, settings.logs.max_line, start)
    clock = CommandClock(start.command)
    dropped = unshared = 0
    async with aclosing(environment.log(start)) as items:
        async for item in items:
            match item:
                case LogPiece():
                    for portion in portions(item, masker):
                        await pass_on(session, environment, stream.feed(portion), clock)
                        unshared += len(portion.data) + PIECE_COST
                        if unshared >= PORTION:
                            unshared = 0
                            await asyncio.sleep(0)
                case LogGap():
                    await pass_on(session, environment, stream.gap(item), clock)
                case LogLost():
                    # Without the log, the agent cannot see when the services were ready.
                    await session.services.begin_commands(environment)
                    await session.reporter.write_log(f"[the log ends here: {item.why}]")
                case LogEnd():
                    dropped = item.dropped
    await pass_on(session, environment, stream.finish(dropped), clock)
    session.stats.log_ended(stream)


def portions(piece: LogPiece, masker: Masker) -> Iterator[LogPiece]:
    """Yield a piece in parts of at most `PORTION` bytes. Yield the whole piece if it certainly contains no secret."""
    if len(piece.data) <= PORTION or masker.passes(piece.data):
        yield piece
        return
    for start in range(0, len(piece.data), PORTION):
        yield LogPiece(piece.data[start : start + PORTION], piece.offset + start)


class CommandClock:
    """Times the command that runs now. A command that was running at the adoption is timed from the adoption on."""

    def __init__(self, command: int) -> None:
        self.command = command
        self.began = time.monotonic()

    def start(self, command: int) -> None:
        self.command, self.began = command, time.monotonic()

    def stop(self) -> float:
        """Record that the command has ended, and return the seconds since its start."""
        self.command = 0
        return time.monotonic() - self.began


async def pass_on(
    session: Session, environment: Environment, items: list[LogChunk | MarkerSeen], clock: CommandClock
) -> None:
    """Send chunks of the log, and the events that markers stand for."""
    for out in items:
        if isinstance(out, MarkerSeen):
            await pass_on_marker(session, environment, out, clock)
        else:
            await session.reporter.send(out)


async def pass_on_marker(session: Session, environment: Environment, out: MarkerSeen, clock: CommandClock) -> None:
    """Send the event that a marker stands for."""
    marker = out.marker
    if marker.kind is MarkerKind.READY:
        await session.services.on_ready(marker.command, environment)
        return
    if marker.kind is MarkerKind.STARTED:
        await session.services.begin_commands(environment)
        clock.start(marker.command)
        session.progress.command_started(marker.command)
        await session.reporter.send(CommandStarted(marker.command, out.cursor))
        return
    # A command that ends the shell (`exit 3`) has no end marker. The last marker of the log ends this command too.
    if clock.command:
        command, seconds = clock.command, clock.stop()
        session.stats.command_finished(seconds)
        await session.reporter.send(CommandFinished(command, marker.exit_code or 0, seconds, out.cursor))
