"""Send the logs of services: live, or their last lines after a failure.

Nothing here changes the outcome of a session. A log that cannot be read leaves a notice in the log of the action.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.aio import cancelled_on_exit
from agent.domain.actions import ServiceLog
from agent.domain.errors import ClusterError, Reason
from agent.domain.events import LogChunk, Source
from agent.domain.outcome import Result
from agent.execution.reporter import MAX_CHUNK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agent.domain.outcome import Outcome
    from agent.execution.ports import Environment
    from agent.execution.session import Session

# Seconds that the last lines of a followed log may need after the end of the commands.
LAST_LINES_SECONDS = 0.5
# Maximum number of characters of a service's last line in the message of an outcome.
MAX_LINE = 300
# Seconds until the last lines of all services are given up.
TAIL_SECONDS = 15.0


@asynccontextmanager
async def live_logs(session: Session, environment: Environment) -> AsyncIterator[None]:
    """Follow the logs of the services that are sent live, as long as the block runs."""
    names = [each.name for each in session.action.services if each.log is ServiceLog.LIVE]
    tasks = [
        asyncio.create_task(
            follow(session, environment, name), name=f"log of service {name} of {session.key.action_id}"
        )
        for name in names
    ]
    async with cancelled_on_exit(*tasks):
        yield
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_LINES_SECONDS)


async def follow(session: Session, environment: Environment, name: str) -> None:
    """Send the log of a service as the service writes it."""
    cursor = session.progress.service_cursors.get(name, b"")
    try:
        async with aclosing(environment.services.live_log(name, cursor)) as parts:
            async for part in parts:
                session.followed_services.add(name)
                for data in chunks(session.reporter.mask(part.data)):
                    await session.reporter.send(LogChunk(data, None, Source.SERVICE, name, part.cursor))
    except ClusterError as error:
        session.followed_services.discard(name)
        await session.reporter.write_log(
            f"[the log of service {name} is not followed: {error.message}; its last lines follow if the action fails]"
        )


async def send_last_lines(session: Session, environment: Environment, outcome: Outcome) -> Outcome:
    """After a failure, send the last lines of the services whose log was not sent live.

    Returns the outcome. If a service is its reason, the last line of this service is a part of the message.
    """
    names = [
        each.name
        for each in session.action.services
        if each.log is not ServiceLog.NONE and each.name not in session.followed_services
    ]
    if not names or outcome.result is not Result.FAILED or not session.progress.environment_exists:
        return outcome
    try:
        async with asyncio.timeout(TAIL_SECONDS):
            for name in names:
                lines = await send_tail(session, environment, name)
                if outcome.reason is Reason.SERVICE_FAILED and f"service {name} " in outcome.message and lines:
                    last = lines.decode("utf-8", "replace").strip().rpartition("\n")[2][:MAX_LINE]
                    outcome = replace(outcome, message=f"{outcome.message}: {last}")
    except TimeoutError:
        await session.reporter.write_log("[the last lines of the services could not be read in time]")
    return outcome


async def send_tail(session: Session, environment: Environment, name: str) -> bytes:
    """Send the last lines of a service, and return them."""
    try:
        lines = await environment.services.last_lines(name)
    except ClusterError as error:
        await session.reporter.write_log(f"[the log of service {name} cannot be read: {error.message}]")
        return b""
    for data in chunks(session.reporter.mask(lines)):
        await session.reporter.send(LogChunk(data, None, Source.SERVICE, name))
    return lines


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield lines in chunks of at most `MAX_CHUNK` bytes. Each chunk ends with a line end; a longer line is cut."""
    while data:
        end = len(data) if len(data) <= MAX_CHUNK else data.rfind(b"\n", 0, MAX_CHUNK) + 1
        if end:
            yield data[:end]
        else:
            end = MAX_CHUNK - 1
            yield data[:end] + b"\n"
        data = data[end:]
