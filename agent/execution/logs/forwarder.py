"""Forwards the log of an environment to the scheduler: reads it, takes the markers out, masks secrets, sends.

The objects live as long as the environment writes. The markers show which command runs, and never decide the outcome.
While the session's window is full, the log is not read, so the memory is bounded whatever the commands write.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from agent.domain.events import CommandFinished, CommandStarted
from agent.domain.observations import LogGap, LogLost, MarkerKind
from agent.execution.logs.masking import Masker
from agent.execution.logs.pipeline import Limits, LogStream, MarkerSeen

if TYPE_CHECKING:
    from agent.domain.events import LogChunk
    from agent.execution.ports import Environment
    from agent.execution.session import Session
    from agent.settings import Settings


async def send_log(session: Session, environment: Environment, settings: Settings) -> None:
    """Send the part of the log that the scheduler has not stored. Returns at the end of the log."""
    start = session.progress.log_start
    limits = Limits(line=settings.logs.max_line, total=settings.logs.max_total)
    masker = Masker(session.action.secrets)
    if masker.too_short and not start.total:
        await session.reporter.write_log(f"[not masked, because too short: {', '.join(masker.too_short)}]")
    stream = LogStream(environment.markers, masker, limits, start)
    clock = CommandClock(start.command)
    async with aclosing(environment.log(start)) as items:
        async for item in items:
            if isinstance(item, LogLost):
                await session.reporter.write_log(f"[the log ends here: {item.why}]")
                continue
            for out in stream.gap(item) if isinstance(item, LogGap) else stream.feed(item):
                await pass_on(session, environment, out, clock)
    for out in stream.finish():
        await pass_on(session, environment, out, clock)
    session.stats.log_ended(stream)


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


async def pass_on(session: Session, environment: Environment, out: LogChunk | MarkerSeen, clock: CommandClock) -> None:
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
    if marker.kind is MarkerKind.LAST:
        environment.log_ended()
