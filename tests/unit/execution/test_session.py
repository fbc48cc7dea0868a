"""The state of one attempt: its one wish, its guarded work, and the words it sends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from agent.domain.actions import Action, Key
from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.events import Finished, LogChunk, Source, StageChanged
from agent.domain.outcome import Outcome, Result
from agent.execution.session import MAX_CHUNK, Interrupted, Session, Wish, ended, first_of
from tests.fakes.sink import RecordingEventSink, RecordingSessionSink
from tests.fakes.waiting import poll_until

if TYPE_CHECKING:
    from collections.abc import Awaitable

WISH = Wish(Reason.CANCELLED, "not wanted", 3.0)
LATE = Wish(Reason.DEADLINE_EXCEEDED, "too late")
KEY = Key("build")


@pytest.fixture
async def outlet() -> RecordingSessionSink:
    return RecordingEventSink().open(KEY)


@pytest.fixture
async def session(outlet: RecordingSessionSink) -> Session:
    return Session(Action(KEY, "alpine", ("true",)), outlet, 60.0)


async def never() -> None:
    await asyncio.Event().wait()


async def value() -> int:
    return 3


async def error() -> None:
    raise ValueError("own")


async def test_the_first_wish_counts(session: Session) -> None:
    session.interrupt(WISH)
    session.interrupt(LATE)
    assert session.wish is WISH
    session.serve_wish()
    assert not session.wished.is_set()
    session.interrupt(LATE)
    assert session.wish is LATE


async def test_who_has_an_outcome_has_no_wish(session: Session, outlet: RecordingSessionSink) -> None:
    await session.finish(Outcome(Result.SUCCEEDED, Stage.COMMANDS))
    session.interrupt(WISH)
    assert session.wish is None
    assert isinstance(outlet.events[-1], Finished)
    assert session.over


async def test_a_session_is_over_only_when_all_is_stored(session: Session, outlet: RecordingSessionSink) -> None:
    outlet.sink.acknowledges.clear()
    task = asyncio.create_task(session.finish(Outcome(Result.SUCCEEDED, Stage.COMMANDS)))
    await outlet.settling.wait()
    assert not session.over
    outlet.sink.acknowledges.set()
    await task
    assert session.over


async def test_guarded_work_gives_its_result_or_its_error(session: Session) -> None:
    assert await session.guarded(value()) == 3
    with pytest.raises(ValueError, match="own"):
        await session.guarded(error())


async def test_a_wish_ends_guarded_work(session: Session) -> None:
    ran: list[str] = []

    async def work() -> None:
        try:
            ran.append("began")
            await never()
        finally:
            ran.append("ended")

    task = asyncio.create_task(session.guarded(work()))
    await poll_until("the coroutine has begun", lambda: ran == ["began"])
    session.interrupt(WISH)
    with pytest.raises(Interrupted) as interrupted:
        await task
    assert interrupted.value.wish is WISH
    assert ran == ["began", "ended"]


async def test_work_that_is_done_with_the_wish_is_done(session: Session) -> None:
    async def work() -> int:
        session.interrupt(WISH)
        return 3

    assert await session.guarded(work()) == 3


async def test_work_that_does_not_end_at_once_is_waited_for(session: Session) -> None:
    go = asyncio.Event()

    async def work() -> None:
        try:
            await never()
        finally:
            await go.wait()

    task = asyncio.create_task(session.guarded(work()))
    session.interrupt(WISH)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(Interrupted):
        await task


async def test_a_guard_that_is_cancelled_ends_its_work(session: Session) -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await never()

    task = asyncio.create_task(session.guarded(work()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stages_are_timed_and_told(session: Session, outlet: RecordingSessionSink) -> None:
    await session.enter(Stage.SETUP)
    await session.enter(Stage.SETUP, "pulling")
    await session.enter(Stage.COMMANDS)
    await session.finish(Outcome(Result.SUCCEEDED, Stage.COMMANDS))
    assert outlet.events[:3] == [
        StageChanged(Stage.SETUP),
        StageChanged(Stage.SETUP, "pulling"),
        StageChanged(Stage.COMMANDS),
    ]
    assert set(session.stage_seconds) == {Stage.ADMISSION, Stage.SETUP, Stage.COMMANDS}


@pytest.mark.parametrize("text", ["one line", "two\nlines\n", "x" * (2 * MAX_CHUNK), "\udcff", ""])
async def test_what_is_said_comes_whole_in_pieces(session: Session, outlet: RecordingSessionSink, text: str) -> None:
    await session.say(text, Source.SETUP)
    chunks = [event for event in outlet.events if isinstance(event, LogChunk)]
    assert all(0 < len(chunk.data) <= MAX_CHUNK and chunk.source is Source.SETUP for chunk in chunks)
    said = b"".join(chunk.data for chunk in chunks)
    assert said.removesuffix(b"\n") == text.encode("utf-8", "surrogateescape").removesuffix(b"\n")
    assert said.endswith(b"\n")


async def test_outcomes(session: Session) -> None:
    session.stage, session.command = Stage.COMMANDS, 2
    assert session.interrupted(WISH, 143) == Outcome(
        Result.CANCELLED, Stage.COMMANDS, Reason.CANCELLED, 143, 2, "not wanted"
    )
    assert session.interrupted(LATE).result is Result.FAILED
    failure = ActionFailed(Stage.SETUP, Reason.EVICTED, "low on memory")
    assert session.failed(failure) == Outcome(Result.FAILED, Stage.SETUP, Reason.EVICTED, None, 2, "low on memory")


async def test_first_of_leaves_the_task_alone() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(never())
    await first_of(task, event, timeout=0.001)
    assert not task.done()
    event.set()
    await first_of(task, event)
    assert not task.done()
    await ended(task)
    assert task.cancelled()


@pytest.mark.parametrize("work", [value, error])
async def test_ended_says_nothing_of_what_is_done(work: type[Awaitable[None]]) -> None:
    task = asyncio.ensure_future(work())
    await asyncio.wait({task})
    await ended(task)
    assert task.done()
    task.exception()
