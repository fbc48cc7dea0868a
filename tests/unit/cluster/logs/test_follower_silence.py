"""Silent log streams: the log follower replaces a stream that a probe proves dead, and keeps all other streams."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from agent.cluster.logs.follower import ContainerState, Timings, follow
from agent.cluster.logs.request import LogRequest
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogPiece
from tests.fakes.kubelet_log import EPOCH, stamp
from tests.fakes.waiting import poll_until
from tests.unit.cluster.logs.log_server import PROBING, TARGET, LogServer, payload

if TYPE_CHECKING:
    pass


async def test_a_probe_finds_a_dead_stream(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.then_silent(), api.up_to(1 << 20)]
    reading = asyncio.create_task(api.read(timings=PROBING))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.write(b"two\n", EPOCH + 1)
    assert payload(await reading) == b"one\ntwo\n"
    # The requests are the first stream, the probe that finds the second line, and a new stream.
    assert [query.get("follow") for query in api.queries][:3] == ["true", None, "true"]


async def test_a_silent_stream_that_works_is_kept(api: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    api.log.write(b"one\n", EPOCH)
    waits: list[tuple[float, bool]] = []
    got = b""
    block = LogRequest.block

    async def recorded(body: LogRequest, ended: asyncio.Task[None], silence: float, settle: float) -> bytes | None:
        got = await block(body, ended, silence, settle)
        waits.append((silence, got is None))
        return got

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(api.log.body())
        await poll_until("the log is requested a fourth time", lambda: len(api.queries) > 3)
        await response.write(stamp(EPOCH + 1) + b" two\n")
        await poll_until("the log is requested a fifth time", lambda: len(api.queries) > 4)
        await response.write(stamp(EPOCH + 2) + b" three\n")
        return response

    async def probe(_: web.Request) -> web.StreamResponse:
        # The probe gets only lines that the stream has delivered. A probe with more lines would prove the stream dead.
        return web.Response(body=api.log.body() + (stamp(EPOCH + 1) + b" two\n" if b"two" in got else b""))

    monkeypatch.setattr(LogRequest, "block", recorded)
    api.script = [answer, *[probe] * 1000]
    async with aclosing(follow(api.client, TARGET, Cursor(), api.container, PROBING)) as items:
        async for item in items:
            assert isinstance(item, LogPiece)
            got += item.data
            if got.endswith(b"three\n"):
                break
    assert got == b"one\ntwo\nthree\n"
    assert api.follows == 1
    for (silence, silent), (after, _) in pairwise(waits):
        assert after == (min(2 * silence, PROBING.longest_probe) if silent else PROBING.probe)


async def test_a_stream_may_bring_more_after_the_container_ended(api: LogServer) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(stamp(EPOCH) + b" one\n")
        api.container.enter(ContainerState.TERMINATED)
        await poll_until("the follower has seen the end", lambda: api.container.end_seen)
        await response.write(stamp(EPOCH + 1) + b" last\n")
        return response

    api.script = [answer]
    got = b""
    async for item in follow(api.client, TARGET, Cursor(), api.container, Timings()):
        assert isinstance(item, LogPiece)
        got += item.data
        api.container.log_ended = got.endswith(b"last\n")
    assert got == b"one\nlast\n"
    assert len(api.queries) == 1


async def test_the_follower_waits_for_headers_until_the_first_line(api: LogServer) -> None:
    """The kubelet sends no header before the first byte of the log."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await poll_until("the log is requested a third time", lambda: len(api.queries) > 2)
        api.log.write(b"late\n", EPOCH)
        return await api.whole(request)

    async def probe(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"")

    api.script = [answer, probe, probe]
    assert payload(await api.read(timings=PROBING)) == b"late\n"
    assert api.follows == 1


async def test_a_stream_that_stays_open_after_the_container_ended_is_closed(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.then_silent()]
    reading = asyncio.create_task(api.read(timings=Timings(probe=1000, settle=0.05)))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.write(b"two\n", EPOCH + 1)
    api.container.enter(ContainerState.TERMINATED)
    assert payload(await reading) == b"one\ntwo\n"
    assert [query.get("follow") for query in api.queries] == ["true", None]
