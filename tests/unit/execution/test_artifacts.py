"""A copy has one deadline, whatever the number of its tries, and says how far the last one came."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from agent.domain.actions import ArtifactRules, Key
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import ActionFailed, ClusterError, Reason
from agent.domain.events import ArtifactSummary
from agent.domain.observations import Collected
from agent.execution.artifacts import send_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.artifacts import FilePart

WHOLE = (FileStart(b"f", 0o644, 3), FileData(b"abc"), FileEnd(b"sum"))


class Pod:
    """`breaks` tries are cut after a while, then one is whole, or hangs in its second file."""

    def __init__(self, breaks: int, *, hangs: bool = False) -> None:
        self.breaks = breaks
        self.hangs = hangs
        self.seconds: list[float] = []

    async def files(self, _: ArtifactRules, seconds: float) -> AsyncIterator[FilePart | Collected]:
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


class Session:
    """What a copy needs of one."""

    def __init__(self) -> None:
        self.key = Key("a", 1, 1)
        self.action = SimpleNamespace(artifacts=ArtifactRules())
        self.outlet = self
        self.retries = 0
        self.sent: list[object] = []

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        async for _ in parts:
            pass

    async def send(self, event: object) -> None:
        self.sent.append(event)

    def hidden(self, text: bytes) -> bytes:
        return text


async def copied(pod: Any, seconds: float) -> Any:
    session: Any = Session()
    await send_files(session, pod, seconds)
    return session


async def test_a_later_try_has_what_the_earlier_ones_left() -> None:
    pod = Pod(2)
    session = await copied(pod, 30.0)
    assert (session.retries, session.sent) == (2, [ArtifactSummary(1, 3)])
    assert pod.seconds[0] <= 30
    assert pod.seconds[1] <= pod.seconds[0] - 0.1
    assert pod.seconds[2] <= pod.seconds[1] - 0.1


@pytest.mark.parametrize("breaks", [0, 1])
async def test_what_has_not_come_at_the_deadline_is_said(breaks: int) -> None:
    with pytest.raises(ActionFailed) as raised:
        await copied(Pod(breaks, hangs=True), 2.0)
    assert raised.value.reason is Reason.ARTIFACTS_FAILED
    assert raised.value.message == (
        "the files could not be copied within 2 s; the last try brought 1 files whole, 3 bytes in all, and they are"
        " not kept"
    )


async def test_what_cannot_pass_is_not_tried_again() -> None:
    pod = Pod(0)

    async def refused(_: ArtifactRules, seconds: float) -> AsyncIterator[FilePart | Collected]:
        pod.seconds.append(seconds)
        yield WHOLE[0]
        raise ClusterError("no")

    pod.files = refused  # type: ignore[method-assign]
    with pytest.raises(ActionFailed, match="could not be copied: no; the last try brought 0 files"):
        await copied(pod, 2.0)
    assert len(pod.seconds) == 1
