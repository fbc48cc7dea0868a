"""The session of one attempt: stop requests, the work that a stop request ends, the outcome, and the sent events."""

from __future__ import annotations

import asyncio

import pytest

from agent.domain.actions import Action, Key
from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.events import Finished, LogChunk, Source, StageChanged
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Resume
from agent.execution.progress import SessionPhase, SessionProgress
from agent.execution.reporter import MAX_CHUNK
from agent.execution.session import Interrupted, Session, StopRequest
from tests.fakes.sink import RecordingEventSink, RecordingSessionSink

CANCEL = StopRequest(Reason.CANCELLED, "not wanted", 3.0)
TIMEOUT = StopRequest(Reason.DEADLINE_EXCEEDED, "too late")
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


async def test_the_first_stop_request_counts(session: Session) -> None:
    session.request_stop(CANCEL)
    session.request_stop(TIMEOUT)
    assert session.stop_request is CANCEL
    session.clear_stop_request()
    assert not session.stop_requested.is_set()
    session.request_stop(TIMEOUT)
    assert session.stop_request is TIMEOUT


async def test_a_session_with_an_outcome_takes_no_stop_request(session: Session, outlet: RecordingSessionSink) -> None:
    await session.finish(Outcome(Result.SUCCEEDED, Stage.COMMANDS))
    session.request_stop(CANCEL)
    assert session.stop_request is None
    assert isinstance(outlet.events[-1], Finished)
    assert session.progress.finished


async def test_a_session_is_finished_only_when_the_scheduler_has_stored_everything(
    session: Session, outlet: RecordingSessionSink
) -> None:
    outlet.sink.acknowledges.clear()
    task = asyncio.create_task(session.finish(Outcome(Result.SUCCEEDED, Stage.COMMANDS)))
    await outlet.settling.wait()
    assert not session.progress.finished
    outlet.sink.acknowledges.set()
    await task
    assert session.progress.finished


async def test_work_returns_its_result_or_raises_its_error(session: Session) -> None:
    assert await session.run_until_stopped(value()) == 3
    with pytest.raises(ValueError, match="own"):
        await session.run_until_stopped(error())


async def test_a_stop_request_ends_the_work(session: Session) -> None:
    ran: list[str] = []
    began = asyncio.Event()

    async def work() -> None:
        try:
            began.set()
            ran.append("began")
            await never()
        finally:
            ran.append("ended")

    task = asyncio.create_task(session.run_until_stopped(work()))
    await began.wait()
    session.request_stop(CANCEL)
    with pytest.raises(Interrupted) as interrupted:
        await task
    assert interrupted.value.request is CANCEL
    assert ran == ["began", "ended"]


async def test_work_that_ends_together_with_the_stop_request_counts(session: Session) -> None:
    async def work() -> int:
        session.request_stop(CANCEL)
        return 3

    assert await session.run_until_stopped(work()) == 3


async def test_the_clean_up_of_stopped_work_is_waited_for(session: Session) -> None:
    began, cleaning, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            began.set()
            await never()
        finally:
            cleaning.set()
            await go.wait()

    task = asyncio.create_task(session.run_until_stopped(work()))
    await began.wait()
    session.request_stop(CANCEL)
    await cleaning.wait()
    await asyncio.wait({task}, timeout=0)
    assert not task.done()
    go.set()
    with pytest.raises(Interrupted):
        await task


async def test_cancelling_the_session_task_ends_the_work(session: Session) -> None:
    began = asyncio.Event()

    async def work() -> None:
        began.set()
        await never()

    task = asyncio.create_task(session.run_until_stopped(work()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_stages_are_timed_and_reported(session: Session, outlet: RecordingSessionSink) -> None:
    await session.reporter.enter(Stage.SETUP)
    await session.reporter.enter(Stage.SETUP, "pulling")
    await session.reporter.enter(Stage.COMMANDS)
    await session.finish(Outcome(Result.SUCCEEDED, Stage.COMMANDS))
    assert outlet.events[:3] == [
        StageChanged(Stage.SETUP),
        StageChanged(Stage.SETUP, "pulling"),
        StageChanged(Stage.COMMANDS),
    ]
    assert set(session.reporter.stage_seconds) == {Stage.ADMISSION, Stage.SETUP, Stage.COMMANDS}


@pytest.mark.parametrize("text", ["one line", "two\nlines\n", "x" * (2 * MAX_CHUNK), "\udcff", ""])
async def test_a_text_of_the_agent_arrives_whole_in_chunks(
    session: Session, outlet: RecordingSessionSink, text: str
) -> None:
    await session.reporter.write_log(text, Source.SETUP)
    chunks = [event for event in outlet.events if isinstance(event, LogChunk)]
    assert [chunk for chunk in chunks if not 0 < len(chunk.data) <= MAX_CHUNK] == []
    assert {chunk.source for chunk in chunks} == {Source.SETUP}
    said = b"".join(chunk.data for chunk in chunks)
    assert said.removesuffix(b"\n") == text.encode("utf-8", "surrogateescape").removesuffix(b"\n")
    assert said.endswith(b"\n")


async def test_outcomes(session: Session) -> None:
    await session.reporter.enter(Stage.COMMANDS)
    session.progress.command_started(2)
    assert session.stopped_outcome(CANCEL, 143) == Outcome(
        Result.CANCELLED, Stage.COMMANDS, Reason.CANCELLED, 143, 2, "not wanted"
    )
    assert session.stopped_outcome(TIMEOUT).result is Result.FAILED
    failure = ActionFailed(Stage.SETUP, Reason.EVICTED, "low on memory")
    assert session.failure_outcome(failure) == Outcome(
        Result.FAILED, Stage.SETUP, Reason.EVICTED, None, 2, "low on memory"
    )


RESET = Resume(KEY, seq=2, cursor=Cursor(3), command=1)


async def test_a_state_loss_ends_the_reporting_and_moves_the_session_back(session: Session) -> None:
    task = asyncio.create_task(session.run_until_reset(never()))
    session.progress.request_reset(RESET)
    assert await task is False
    session.restart_reporting()
    progress = session.progress
    assert (progress.stored_seq, progress.log_start, progress.command) == (2, RESET.cursor, 1)
    assert not progress.reset_requested.is_set()
    assert await session.run_until_reset(asyncio.sleep(0)) is True


async def test_a_session_reports_its_first_outcome_again(session: Session, outlet: RecordingSessionSink) -> None:
    await session.finish(Outcome(Result.SUCCEEDED, Stage.COMMANDS))
    session.progress.request_reset(Resume(KEY))
    await session.resend_outcome()
    assert outlet.outcome.result is Result.SUCCEEDED
    assert b"the scheduler has lost the log" in outlet.log


async def test_secrets_are_masked_in_the_texts_of_the_agent(outlet: RecordingSessionSink) -> None:
    session = Session(Action(KEY, "alpine", ("true",), secrets={"TOKEN": "hunter2-hunter2"}), outlet, 60.0)
    await session.reporter.write_log("hunter2-hunter2 is not a path")
    await session.finish(Outcome(Result.FAILED, Stage.SETUP, Reason.INTERNAL, message="no hunter2-hunter2"))
    assert (outlet.log, outlet.outcome.message) == (b"*** is not a path\n", "no ***")


async def test_phases_of_an_own_session(session: Session) -> None:
    assert (session.progress.phase, session.progress.awaits_resume) == (SessionPhase.STARTING, False)
    assert not session.progress.resume(Resume(KEY)), "the session does not await where to go on"
    session.progress.environment_created()
    assert session.progress.environment_exists
    session.progress.finish()
    session.progress.environment_created()
    assert session.progress.finished, "a dropped session stays finished"


async def test_phases_of_an_adopted_session() -> None:
    progress = SessionProgress(adopted=True)
    assert (progress.phase, progress.awaits_resume) == (SessionPhase.AWAITING_RESUME, True)
    assert progress.resume(RESET)
    assert (progress.phase, progress.awaits_resume) == (SessionPhase.STARTING, False)
    assert not progress.resume(RESET), "a second answer is not awaited"
    assert progress.resume_point is not None
    assert await progress.resume_point is RESET


async def test_the_first_outcome_counts() -> None:
    progress = SessionProgress()
    first, second = Outcome(Result.SUCCEEDED, Stage.COMMANDS), Outcome(Result.FAILED, Stage.ARTIFACTS)
    assert progress.decide(first) is first
    assert progress.decide(second) is first
    assert progress.cleaning_up
