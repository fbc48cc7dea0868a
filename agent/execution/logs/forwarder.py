"""The log of an environment to the scheduler: read, markers out, secrets masked, sent as it comes.

Lives as long as the environment writes. The markers tell which command runs and are never the verdict. The outlet's
full window holds the reader back, so the memory is bounded whatever is written.
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
    from agent.domain.log_cursor import Cursor
    from agent.execution.ports import Environment
    from agent.execution.session import Session
    from agent.settings import Settings


async def send_log(session: Session, environment: Environment, settings: Settings, start: Cursor) -> None:
    """Send the whole log from `start` on; returns at its end."""
    limits = Limits(line=settings.logs.max_line, total=settings.logs.max_total)
    masker = Masker(session.action.secrets)
    if masker.too_short and not start.total:
        await session.say(f"[not masked, because too short: {', '.join(masker.too_short)}]")
    stream = LogStream(environment.markers, masker, limits, start)
    clock = Clock(start.command)
    async with aclosing(environment.log(start)) as items:
        async for item in items:
            if isinstance(item, LogLost):
                await session.say(f"[the log ends here: {item.why}]")
                continue
            for out in stream.gap(item) if isinstance(item, LogGap) else stream.feed(item):
                await pass_on(session, environment, out, clock)
    for out in stream.finish():
        await pass_on(session, environment, out, clock)
    session.count_log(stream)


class Clock:
    """Times the one command that runs; an adopted one from the adoption on."""

    def __init__(self, command: int) -> None:
        self.command = command
        self.began = time.monotonic()

    def start(self, command: int) -> None:
        """Note the start of a command."""
        self.command, self.began = command, time.monotonic()

    def stop(self) -> float:
        """Return the seconds since the start; nothing runs now."""
        self.command = 0
        return time.monotonic() - self.began


async def pass_on(session: Session, environment: Environment, out: LogChunk | MarkerSeen, clock: Clock) -> None:
    """Send a chunk, or what a marker means."""
    if not isinstance(out, MarkerSeen):
        await session.send(out)
        return
    marker = out.marker
    if marker.kind is MarkerKind.STARTED:
        clock.start(marker.command)
        session.command = marker.command
        await session.send(CommandStarted(marker.command, out.cursor))
        return
    # A command that ends the shell has no end of its own: the last marker is its end too.
    if clock.command:
        command, seconds = clock.command, clock.stop()
        session.command_seconds.append(seconds)
        await session.send(CommandFinished(command, marker.exit_code or 0, seconds, out.cursor))
    if marker.kind is MarkerKind.LAST:
        environment.log_ended()
