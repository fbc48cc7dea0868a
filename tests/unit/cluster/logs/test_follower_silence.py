"""Silent log streams: the log follower replaces a stream that a probe proves dead, and keeps all other streams."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
from aiohttp import web

from agent.cluster.logs.follower import follow
from agent.cluster.logs.request import LogRequest
from agent.domain.observations import LogPiece
from tests.fakes.helper_log import KEY, frame
from tests.fakes.waiting import poll_until
from tests.unit.cluster.logs.log_server import PROBING, TARGET, LogServer, payload


async def test_a_probe_finds_a_dead_stream(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.script = [api.then_silent(), api.part()]
    reading = asyncio.create_task(api.read(timings=PROBING))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.write(b"two\n")
    assert payload(await reading) == b"one\ntwo\n"
    # The requests are the first stream, the probe that finds the second line, and a new stream.
    assert [query.get("follow") for query in api.queries][:3] == ["true", None, "true"]


async def test_a_silent_stream_that_works_is_kept(api: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    api.log.write(b"one\n")
    waits: list[tuple[float, bool]] = []
    got = b""
    block = LogRequest.block

    async def recorded(body: LogRequest, changed: asyncio.Task[None], silence: float) -> bytes | None:
        got = await block(body, changed, silence)
        waits.append((silence, got is None))
        return got

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(api.log.body())
        await poll_until("the log is requested a fourth time", lambda: len(api.queries) > 3)
        await response.write(frame(4, b"two\n"))
        await poll_until("the log is requested a fifth time", lambda: len(api.queries) > 4)
        await response.write(frame(8, b"three\n"))
        return response

    async def probe(_: web.Request) -> web.StreamResponse:
        # The probe gets only lines that the stream has delivered. If a probe got more lines, the agent would replace
        # the stream.
        return web.Response(body=api.log.body() + (frame(4, b"two\n") if b"two" in got else b""))

    monkeypatch.setattr(LogRequest, "block", recorded)
    api.script = [answer, *[probe] * 1000]
    async with aclosing(follow(api.client, TARGET, 0, api.source, KEY, PROBING)) as items:
        async for item in items:
            assert isinstance(item, LogPiece)
            got += item.data
            if got.endswith(b"three\n"):
                break
    assert got == b"one\ntwo\nthree\n"
    assert api.follows == 1
    for (silence, silent), (after, _) in pairwise(waits):
        assert after == (min(2 * silence, PROBING.longest_probe) if silent else PROBING.probe)


async def test_the_follower_waits_for_headers_until_the_first_line(api: LogServer) -> None:
    """The kubelet sends no header before the first byte of the log."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await poll_until("the log is requested a third time", lambda: len(api.queries) > 2)
        api.log.write(b"late\n")
        return await api.whole(request)

    async def probe(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"")

    api.script = [answer, probe, probe]
    assert payload(await api.read(timings=PROBING)) == b"late\n"
    assert api.follows == 1
