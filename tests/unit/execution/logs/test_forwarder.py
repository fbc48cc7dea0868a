"""The log forwarder never blocks the other tasks of the agent for long, for any log and any secrets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

from agent.cluster.supervisor.markers import MarkerReader
from agent.domain.events import CommandFinished, CommandStarted, LogChunk
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogEnd, LogPiece
from agent.execution.logs.forwarder import PORTION, send_log
from agent.execution.logs.masking import Masker
from agent.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from agent.domain.events import Event
    from agent.domain.observations import LogItem
    from agent.execution.ports import Environment
    from agent.execution.session import Session

NONCE = "0123456789abcdef"
MARK = b"\x1esealci:" + NONCE.encode() + b":"


class FakeSession:
    """The parts of a session that the log forwarder uses.

    `events` holds the events that the forwarder sent.
    """

    def __init__(self, secrets: Mapping[str, str], *payload: bytes, commands: int = 2, dropped: int = 0) -> None:
        self.secrets = secrets
        self.progress = SimpleNamespace(log_start=Cursor(), command_started=lambda _: None)
        self.stats = SimpleNamespace(log_ended=lambda _: None, command_finished=lambda _: None)
        self.reporter = self
        self.services = SimpleNamespace(begin_commands=self.begin_commands)
        self.payload = payload
        self.commands = commands
        self.dropped = dropped
        self.events: list[Event] = []
        self.notices: list[str] = []

    def masker(self) -> Masker:
        return Masker(self.secrets)

    async def begin_commands(self, environment: Environment) -> None:
        """Do nothing, because the action has no services."""

    async def send(self, event: Event) -> None:
        self.events.append(event)

    async def write_log(self, text: str) -> None:
        self.notices.append(text)

    def markers(self, start: Cursor) -> MarkerReader:
        return MarkerReader(NONCE, self.commands, start)

    async def log(self, cursor: Cursor) -> AsyncGenerator[LogItem, None]:
        at = 0
        for data in self.payload:
            yield LogPiece(data, at)
            at += len(data)
        yield LogEnd(self.dropped)

    async def run(self) -> None:
        await send_log(cast("Session", self), cast("Environment", self), Settings())

    @property
    def text(self) -> bytes:
        return b"".join(event.data for event in self.events if isinstance(event, LogChunk))


async def test_other_tasks_run_between_portions_of_a_log_that_matches_everywhere() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    data = b"a" * 20 * PORTION
    session = FakeSession({f"S{size}": "a" * size for size in range(4, 154)}, data)
    task = asyncio.create_task(other())
    await session.run()
    task.cancel()
    assert session.text == b"***"
    assert turns >= 20


async def test_a_forged_last_marker_is_text() -> None:
    start, end, last = MARK + b"s:1\n", MARK + b"f:1:0\n", MARK + b"l:0:0\n"
    session = FakeSession({}, start + b"one\n" + last, b"work goes on\n", end + last)
    await session.run()
    assert session.text == b"one\n" + last + b"work goes on\n"
    kinds = [type(event) for event in session.events if not isinstance(event, LogChunk)]
    assert kinds == [CommandStarted, CommandFinished]


async def test_forged_markers_are_neither_events_nor_commands() -> None:
    forged = (MARK + b"s:1\n" + MARK + b"f:1:0\n") * 10_000
    session = FakeSession({}, forged, commands=1)
    await session.run()
    assert len([event for event in session.events if not isinstance(event, LogChunk)]) == 2
    assert session.text == forged[len(MARK + b"s:1\n" + MARK + b"f:1:0\n") :]
    assert len(session.events) <= 3 + len(forged) // PORTION + 1


async def test_secrets_that_are_masked_in_part_or_not_at_all_are_named() -> None:
    session = FakeSession({"PIN": "123", "HUGE": "x1" * 100_000}, b"log\n")
    await session.run()
    assert session.notices == ["[not masked, because too short: PIN]", "[masked in part, because too long: HUGE]"]


async def test_bytes_over_the_limit_of_the_log_are_counted_in_a_notice() -> None:
    session = FakeSession({"TOKEN": "secret-value"}, MARK + b"s:1\n" + b"one\nsecr", dropped=1000)
    await session.run()
    size = len(MARK + b"s:1\n" + b"one\nsecr")
    assert session.text == b"one\n***\n[log cut at %d bytes: 1000 bytes are left out]\n" % size


async def test_a_fast_log_without_secrets_is_taken_in_large_portions() -> None:
    data = b"0123456789abcde\n" * 4096
    session = FakeSession({"TOKEN": "secret-value"}, data, data)
    await session.run()
    assert [event.data for event in session.events if isinstance(event, LogChunk)] == [data, data]
