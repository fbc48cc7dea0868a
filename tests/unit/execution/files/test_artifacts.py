"""All tries to copy the artifacts share one deadline, and the agent reports how far the last try came."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, cast

import pytest
from tenacity import wait_none

from agent.domain.actions import Action, ArtifactRules, Key
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import ActionFailed, ClusterError, Reason
from agent.domain.events import ArtifactSummary
from agent.domain.observations import Collected
from agent.execution.files.artifacts import copy_files
from agent.execution.session import Session
from agent.execution.timings import SessionTimings
from tests.fakes.sink import RecordingEventSink, RecordingSessionSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.artifacts import FilePart

KEY = Key("a", 1, 1)
WHOLE = (FileStart(b"f", 0o644, 3), FileData(b"abc"), FileEnd(b"sum"))


class Pod:
    """A pod from which files are copied. Each of the first `breaks` copies fails after one file.

    The next copy succeeds or, if `hangs` is true, hangs in the second file.
    """

    def __init__(self, breaks: int, *, hangs: bool = False) -> None:
        self.breaks = breaks
        self.hangs = hangs
        self.seconds: list[float] = []
        self.turns = asyncio.Semaphore(1)

    def copy_turn(self) -> AbstractAsyncContextManager[None]:
        return self.turns

    async def files(
        self, _: ArtifactRules, seconds: float, *, objects: bool = False, packs: bool = False
    ) -> AsyncIterator[FilePart | Collected]:
        self.seconds.append(seconds)
        for part in WHOLE:
            yield part
        if len(self.seconds) <= self.breaks:
            await asyncio.sleep(0.1)
            raise ClusterError("cut", retryable=True)
        if self.hangs:
            yield WHOLE[0]
            await asyncio.Event().wait()
        yield Collected(ArtifactSummary(1, 3))


def session_of(outlet: RecordingSessionSink) -> Session:
    return Session(Action(KEY, "alpine", ("true",)), outlet, 60.0, timings=SessionTimings(upload_backoff=wait_none()))


async def copied(pod: Any, seconds: float) -> tuple[Session, RecordingSessionSink]:
    outlet = RecordingEventSink().open(KEY)
    session = session_of(outlet)
    await copy_files(session, pod, seconds)
    return session, outlet


@pytest.mark.looptime
async def test_a_later_attempt_has_the_time_that_earlier_attempts_left() -> None:
    pod = Pod(2)
    session, outlet = await copied(pod, 30.0)
    assert (session.stats.upload_retries, outlet.events) == (2, [ArtifactSummary(1, 3)])
    assert pod.seconds[0] <= 30
    assert pod.seconds[1] <= pod.seconds[0] - 0.09
    assert pod.seconds[2] <= pod.seconds[1] - 0.09


@pytest.mark.looptime
@pytest.mark.parametrize("breaks", [0, 1])
async def test_the_failure_at_the_deadline_states_the_progress(breaks: int) -> None:
    with pytest.raises(ActionFailed) as raised:
        await copied(Pod(breaks, hangs=True), 2.0)
    assert raised.value.reason is Reason.ARTIFACTS_FAILED
    assert raised.value.message == (
        "the files could not be copied within 2 s; the last attempt copied 1 whole files, 3 bytes in all, which are"
        " not kept"
    )


@pytest.mark.looptime
async def test_a_store_that_fails_until_the_deadline_is_the_reason() -> None:
    pod, whole = Pod(0), Pod.files

    async def slow(
        _: ArtifactRules, seconds: float, *, objects: bool = False, packs: bool = False
    ) -> AsyncIterator[FilePart | Collected]:
        if not objects:
            async for item in whole(pod, ArtifactRules(), seconds):
                yield item
            return
        # As the program in the pod does, which keeps a part of its time for the report.
        await asyncio.sleep(seconds * 0.95)
        raise ClusterError("HTTP 503", reason=Reason.OBJECT_STORE_UNAVAILABLE, retryable=True)
        yield

    pod.files = slow  # type: ignore[method-assign]
    outlet = RecordingEventSink().open(KEY)
    session = session_of(outlet)
    with pytest.raises(ActionFailed, match="into the object store: HTTP 503; tried for 60 s") as raised:
        await copy_files(session, cast(Any, pod), 60.0, objects=True)
    assert raised.value.reason is Reason.OBJECT_STORE_UNAVAILABLE
    await copy_files(session, cast(Any, pod), 60.0)
    assert outlet.events == [ArtifactSummary(1, 3)]


async def hold_turn(pod: Pod, seconds: float) -> None:
    async with pod.turns:
        await asyncio.sleep(seconds)


@pytest.mark.looptime
async def test_the_wait_for_a_turn_does_not_count_as_copying() -> None:
    pod = Pod(0)
    other = asyncio.create_task(hold_turn(pod, 29.0))
    await asyncio.sleep(0)
    _, outlet = await copied(pod, 30.0)
    assert outlet.events == [ArtifactSummary(1, 3)]
    assert pod.seconds[0] == pytest.approx(30.0, abs=0.01)
    await other


@pytest.mark.looptime
async def test_all_waits_for_a_turn_together_have_a_bound() -> None:
    pod = Pod(5)
    others = [asyncio.create_task(hold_turn(pod, 20.0)) for _ in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(ActionFailed, match="other actions copied theirs for 30 s") as raised:
        await copied(pod, 30.0)
    assert raised.value.reason is Reason.ARTIFACTS_FAILED
    await asyncio.gather(*others)


async def test_a_permanent_error_is_not_retried() -> None:
    pod = Pod(0)

    async def refused(
        _: ArtifactRules, seconds: float, *, objects: bool = False, packs: bool = False
    ) -> AsyncIterator[FilePart | Collected]:
        pod.seconds.append(seconds)
        yield WHOLE[0]
        raise ClusterError("no")

    pod.files = refused  # type: ignore[method-assign]
    with pytest.raises(ActionFailed, match="could not be copied: no; the last attempt copied 0 whole files"):
        await copied(pod, 2.0)
    assert len(pod.seconds) == 1
