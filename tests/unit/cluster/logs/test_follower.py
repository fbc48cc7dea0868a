"""The log follower: its requests, how it resumes after a broken connection, and a slow consumer of its output."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster.logs.follower import ContainerState, Timings, follow
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogPiece
from tests.fakes.kubelet_log import EPOCH, SECOND, KubeletLog, stamp
from tests.fakes.waiting import poll_until
from tests.unit.cluster.logs.log_server import FAST, TARGET, LogServer, others, payload, serving

if TYPE_CHECKING:
    pass


# ---- requests


async def test_one_request_reads_the_whole_log(api: LogServer) -> None:
    api.log.write(b"one\ntwo\nno newline", EPOCH)
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        api.container.log_ended = True
        return await api.whole(request)

    api.script = [answer]
    async with aclosing(follow(api.client, TARGET, Cursor(), api.container, FAST)) as items:
        assert payload([await anext(items)]) == b""
    assert api.queries == [{"container": "action", "timestamps": "true", "follow": "true"}]
    assert seen == ["Bearer token"]


async def test_a_resumed_read_starts_at_the_whole_second_in_utc(api: LogServer) -> None:
    api.log.zone = 120
    api.log.write(b"one\ntwo\n", EPOCH + 17)
    cursor = Cursor(stamp(EPOCH + 17, 120).decode(), 1, 4, 4)
    assert payload(await api.read(cursor)) == b"two\n"
    assert api.queries[0]["sinceTime"] == stamp(EPOCH).decode().replace(".000000000", "")


async def test_a_waiting_container_causes_no_request(api: LogServer) -> None:
    api.container.enter(ContainerState.WAITING)
    api.log.write(b"x\n", EPOCH)
    reading = asyncio.create_task(api.read())
    await asyncio.sleep(0)
    assert api.queries == []
    api.container.enter(ContainerState.RUNNING)
    assert payload(await reading) == b"x\n"
    assert [query.get("follow") for query in api.queries][:1] == ["true"]


async def test_the_log_of_an_ended_container_is_read_plainly(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    api.container.enter(ContainerState.TERMINATED)
    assert payload(await api.read()) == b"one\n"
    assert [query.get("follow") for query in api.queries] == [None]


async def test_a_pod_that_is_gone_after_the_last_marker_has_lost_nothing(api: LogServer) -> None:
    api.container.enter(ContainerState.GONE)
    api.container.log_ended = True
    assert await api.read() == []
    assert api.queries == []


@pytest.mark.parametrize(("node_limit", "requests"), [(1 << 20, ["true"]), (1, ["true", None])])
async def test_the_last_marker_saves_the_last_read_of_an_ended_container(
    api: LogServer, node_limit: int, requests: list[str | None]
) -> None:
    """The follower reads the log once more only if the node's log file may be full.

    After a rotation of a full file, a stream may stand still although the node has more of the log.
    """
    api.log.write(b"one\nlast\n", EPOCH)
    api.script = [api.then_silent()]
    got = b""
    async with asyncio.timeout(20):
        timings = Timings(settle=60.0)
        async for item in follow(api.client, TARGET, Cursor(), api.container, timings, node_limit):
            assert isinstance(item, LogPiece)
            got += item.data
            api.container.log_ended = got.endswith(b"last\n")
            api.container.enter(ContainerState.TERMINATED)
    assert got == b"one\nlast\n"
    assert [query.get("follow") for query in api.queries] == requests


async def test_the_last_marker_ends_no_stream_of_a_container_that_runs(api: LogServer) -> None:
    """A process of the commands can print a forged last marker, be silent, and continue to work."""
    api.container.log_ended = True

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(stamp(EPOCH) + b" forged\n")
        await asyncio.sleep(0.3)
        await response.write(stamp(EPOCH + 1) + b" hidden work\n")
        await asyncio.Event().wait()
        return response

    api.script = [answer]
    got = b""
    async with aclosing(follow(api.client, TARGET, Cursor(), api.container, replace(FAST, probe=30.0))) as items:
        async for item in items:
            assert isinstance(item, LogPiece)
            got += item.data
            if b"hidden" in got:
                break
    assert got == b"forged\nhidden work\n"


async def test_what_follows_a_forged_last_marker_is_read_when_the_stream_breaks(api: LogServer) -> None:
    api.log.write(b"one\nforged\n", EPOCH)
    api.script = [api.then_silent(cut=True)]
    got = b""
    async for item in follow(api.client, TARGET, Cursor(), api.container, FAST):
        assert isinstance(item, LogPiece)
        got += item.data
        if not api.container.log_ended:
            api.container.log_ended = True
            api.log.write(b"hidden work\n", EPOCH + 1)
    assert got == b"one\nforged\nhidden work\n"


async def test_an_error_after_the_last_marker_is_no_lost_log(api: LogServer) -> None:
    api.container.enter(ContainerState.TERMINATED)
    api.container.log_ended = True
    api.script = [api.status(404)] * 1000
    assert await api.read() == []


# ---- broken streams


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
async def test_a_stream_that_breaks_at_any_byte_is_resumed_at_the_next(api: LogServer, step: int) -> None:
    for number in range(6):
        api.log.write(b"line \xff\x00\r %d\n" % number * (number % 3), EPOCH + number // 2 * SECOND)
    api.log.write(b"no newline", EPOCH + 3 * SECOND)
    api.script = [api.up_to(position) for position in range(step, len(api.log.body()), step)]
    items = await api.read()
    assert others(items) == []
    assert payload(items) == api.log.payload()


WRITES = st.lists(st.tuples(st.sampled_from([0, 1, SECOND]), st.binary(max_size=40), st.booleans()), max_size=30)
CUTS = st.lists(st.floats(0, 1), max_size=8)


@settings(max_examples=25)
@given(st.sampled_from([0, 90]), st.sampled_from([5, 1000]), WRITES, CUTS)
def test_any_cuts_of_any_log(zone: int, piece: int, writes: list[tuple[int, bytes, bool]], cuts: list[float]) -> None:
    async def check() -> None:
        async with serving() as api:
            api.log = KubeletLog(zone, piece)
            at = EPOCH
            for passed, data, newline in writes:
                at += passed
                api.log.write(data + b"\n" * newline, at)
            size = len(api.log.body())
            api.script = [api.up_to(position) for position in sorted(int(cut * size) for cut in cuts)]
            items = await api.read()
            assert others(items) == []
            assert payload(items) == api.log.payload()

    asyncio.run(check())


async def test_a_line_of_five_mebibytes_breaks_in_its_middle(api: LogServer) -> None:
    api.log.write(b"before\n" + b"0123456789abcdef" * (5 << 16) + b"\nafter\n", EPOCH)
    api.script = [api.up_to(position << 20) for position in (1, 2, 4)]
    items = await api.read()
    assert payload(items) == api.log.payload()
    assert max(len(item.data) for item in items if isinstance(item, LogPiece)) < 1 << 20


async def test_a_thousand_lines_of_one_nanosecond(api: LogServer) -> None:
    api.log.write(b"".join(b"%d\n" % number for number in range(1000)), EPOCH + 5)
    api.script = [api.up_to(position) for position in (10_000, 10_010, 25_000)]
    assert payload(await api.read()) == api.log.payload()


async def test_a_broken_connection_is_opened_again(api: LogServer) -> None:
    api.log.write(b"one\ntwo", EPOCH)
    api.script = [api.then_silent(cut=True), api.then_silent(cut=True)]
    items = await api.read()
    assert payload(items) == b"one\ntwo"
    assert api.metrics.registry.get_sample_value("sealci_agent_log_reopened_total") == 2


async def test_a_refused_connection_is_retried() -> None:
    async with serving() as api:
        api.log.write(b"one\n", EPOCH)
        host = api.client.api.configuration.host
        api.client.api.configuration.host = "http://127.0.0.1:1"
        reading = asyncio.create_task(api.read())
        await poll_until("the client counts the API server as unreachable", lambda: not api.client.reachable)
        api.client.api.configuration.host = host
        assert payload(await reading) == b"one\n"


async def test_the_end_of_a_stream_is_not_the_end_of_the_log(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.up_to(1 << 20)] * 3
    reading = asyncio.create_task(api.read())
    await poll_until("the log is requested a third time", lambda: len(api.queries) > 2)
    api.log.write(b"two\n", EPOCH + SECOND)
    assert payload(await reading) == b"one\ntwo\n"


# ---- the consumer of the follower's output


async def test_a_slow_consumer_stops_the_node(api: LogServer) -> None:
    written = 0
    all_written = asyncio.Event()
    line = stamp(EPOCH) + b" " + b"x" * 1000 + b"\n"

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(line * 64)
            written += len(line) * 64
        all_written.set()
        return response

    api.script = [flood]
    async with aclosing(follow(api.client, TARGET, Cursor(), api.container, FAST)) as items:
        await anext(items)
        await anext(items)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(all_written.wait(), 0.5)
        assert written < 16 << 20
        got = 0
        async for item in items:
            assert isinstance(item, LogPiece)
            got += len(item.data)
            if got > 20 << 20:
                break
    assert written > 20 << 20


async def test_a_consumer_that_leaves_closes_the_connection(api: LogServer) -> None:
    closed = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await api.then_silent()(request)
        finally:
            closed.set()

    api.log.write(b"one\n", EPOCH)
    api.script = [answer]
    async with aclosing(follow(api.client, TARGET, Cursor(), api.container, FAST)) as items:
        await anext(items)
    await asyncio.wait_for(closed.wait(), 5)


@pytest.mark.parametrize("headers", [True, False])
async def test_a_cancelled_consumer_leaves_no_task(api: LogServer, headers: bool) -> None:
    async def mute(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    api.script = [api.then_silent() if headers else mute]
    reading = asyncio.create_task(api.read(timings=Timings()))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("log:")]
