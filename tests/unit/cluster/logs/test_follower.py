"""The log follower: its requests, how it fills gaps in the log, and a slow consumer of its output."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cluster.logs.follower import MOST_GAPS, MOST_MISSING, follow
from agent.cluster.logs.source import LogState, Timings
from agent.domain.observations import LogEnd, LogGap, LogPiece
from tests.fakes.helper_log import KEY, HelperLog, frame
from tests.fakes.waiting import poll_until
from tests.unit.cluster.logs.log_server import FAST, TARGET, LogServer, others, payload, serving

# ---- requests


async def test_one_request_reads_the_whole_log(api: LogServer) -> None:
    api.log.write(b"one\ntwo\nno newline")
    seen: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers["Authorization"])
        return await api.whole(request)

    api.script = [answer]
    items = await api.read()
    assert payload(items) == b"one\ntwo\nno newline"
    assert others(items) == [LogEnd()]
    assert api.queries == [{"container": "helper", "follow": "true"}]
    assert api.errands == []
    assert seen == ["Bearer token"]


async def test_a_waiting_helper_causes_no_request(api: LogServer) -> None:
    api.source.enter(LogState.WAITING)
    api.log.write(b"x\n")
    reading = asyncio.create_task(api.read())
    await asyncio.sleep(0)
    assert api.queries == []
    api.source.enter(LogState.OPEN)
    assert payload(await reading) == b"x\n"


async def test_an_old_position_is_caught_up_from_the_file(api: LogServer) -> None:
    """The log request asks for lines of the last seconds only. The agent reads older lines from the log file."""
    api.log.write(b"one\ntwo\nthree\n")
    items = await api.read(4)
    assert payload(items) == b"two\nthree\n"
    assert api.errands == [(4, "once")]
    assert [query["sinceSeconds"] for query in api.queries] == ["6"]


async def test_the_last_frame_ends_the_log_while_the_commands_seem_to_run(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.log.end(dropped=17)
    api.script = [api.then_silent()]
    items = await api.read(timings=Timings())
    assert others(items) == [LogEnd(17)]
    assert len(api.queries) == 1


async def test_a_forged_end_ends_nothing(api: LogServer) -> None:
    """The commands can print bytes that look like a frame. Without the log key, their checksum is wrong."""
    forged = HelperLog(0)
    forged.end()
    api.log.write(forged.stdout + b"hidden work\n")
    api.script = [api.then_silent(30, cut=True)]
    items = await api.read()
    assert payload(items) == forged.stdout + b"hidden work\n"
    assert others(items) == [LogEnd()]


# ---- bytes that are missing in the helper's stdout


async def test_a_gap_in_the_frames_is_filled_from_the_file(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.log.skip(b"two\n" * 100)
    api.log.write(b"three\n")
    items = await api.read()
    assert payload(items) == api.log.content
    assert others(items) == [LogEnd()]
    assert api.errands == [(4, "once")]
    assert len(api.queries) == 1


async def test_a_large_gap_is_read_from_the_file_to_the_end_of_the_log(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.log.skip(b"x" * (MOST_MISSING + 1))
    api.log.write(b"three\n")
    api.script = [api.then_silent()]
    reading = asyncio.create_task(api.read())
    await poll_until("the file is read", lambda: bool(api.errands))
    api.log.skip(b"last\n")
    api.log.end()
    items = await reading
    assert payload(items) == api.log.content
    assert others(items) == [LogEnd()]
    assert api.errands == [(4, "follow")]


async def test_many_gaps_are_read_from_the_file_to_the_end_of_the_log(api: LogServer) -> None:
    for _ in range(MOST_GAPS + 1):
        api.log.write(b"one\n")
        api.log.skip(b"two\n")
    api.log.write(b"three\n")

    async def each(request: web.Request) -> web.StreamResponse:
        """Serve frames with a gap before each frame.

        The log file gets the bytes of a frame only after the agent has read the gap before that frame.
        """
        response = web.StreamResponse()
        await response.prepare(request)
        content, api.log.content = api.log.content, b""
        for turn in range(MOST_GAPS + 2):
            await poll_until("the gap before is filled", lambda: len(api.errands) >= turn - 1)  # noqa: B023
            api.log.content = content[: 8 * turn + 4]
            await response.write(frame(8 * turn, content[8 * turn : 8 * turn + 4]))
        api.log.content = content
        api.log.end()
        await asyncio.Event().wait()
        return response

    api.script = [each]
    items = await api.read()
    assert payload(items) == api.log.content
    assert others(items) == [LogEnd()]
    assert [how for _, how in api.errands] == ["once"] * MOST_GAPS + ["follow"]


async def test_a_fast_log_is_read_from_the_file(api: LogServer) -> None:
    api.log.write(b"0123456789abcde\n" * (1 << 17))
    api.script = [api.then_silent()]
    reading = asyncio.create_task(api.read())
    await poll_until("the file is read", lambda: bool(api.errands))
    api.log.end()
    items = await reading
    assert payload(items) == api.log.content
    ((position, how),) = api.errands
    assert how == "follow"
    assert 0 < position < len(api.log.content)


@pytest.mark.parametrize("step", [10, 64, 1000, 100_000])
async def test_an_exec_that_breaks_is_resumed_at_the_next_byte(api: LogServer, step: int) -> None:
    api.log.write(b"one\n")
    api.log.skip(bytes(range(256)) * 2000)
    api.log.write(b"last\n")
    size = len(api.log.content)
    api.execs = [api.cut_errand(min(size, 4 + step * turn)) for turn in range(1, 6)]
    api.log.end()
    items = await api.read()
    assert payload(items) == api.log.content
    assert others(items) == [LogEnd()]


async def test_a_silent_stream_after_the_end_of_the_commands_is_completed_from_the_file(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.script = [api.then_silent()]
    reading = asyncio.create_task(api.read(timings=replace(FAST, probe=1000)))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.skip(b"two\n")
    api.log.end()
    api.source.enter(LogState.ENDING)
    items = await reading
    assert payload(items) == b"one\ntwo\n"
    assert others(items) == [LogEnd()]
    assert api.errands == [(4, "follow")]


async def test_the_log_of_a_container_that_could_not_be_executed_ends_empty(api: LogServer) -> None:
    """The helper never ends the log, because no process in container `action` has opened the log."""
    api.script = [api.then_silent()]
    reading = asyncio.create_task(api.read(timings=replace(FAST, probe=1000)))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.source.enter(LogState.ENDING)
    assert await reading == [LogEnd()]
    assert set(api.errands) == {(0, "once")}


async def test_a_torn_frame_does_not_delay_the_frames_behind_it(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.log.write(b"x" * 5000)
    end = len(api.log.body())
    api.log.write(b"three\n")
    body = api.log.body()

    async def torn(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(body[:200] + body[end:])
        await asyncio.Event().wait()
        return response

    api.script = [torn]
    got = b""
    items = follow(api.client, TARGET, 0, api.source, KEY, replace(FAST, probe=1000))
    async with asyncio.timeout(30), aclosing(items):
        async for item in items:
            assert isinstance(item, LogPiece)
            got += item.data
            if got.endswith(b"three\n"):
                break
    assert got == api.log.content


# ---- broken streams


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
async def test_a_stream_that_breaks_at_any_byte_is_resumed_at_the_next(api: LogServer, step: int) -> None:
    for number in range(6):
        api.log.write(b"line \xff\x00\r\r\n %d\n" % number * (number % 3))
    api.log.write(b"no newline")
    api.script = [api.part(0, position) for position in range(step, len(api.log.body()), step)]
    items = await api.read()
    assert others(items) == [LogEnd()]
    assert payload(items) == api.log.content


WRITES = st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=30)
CUTS = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8)


@settings(max_examples=25, deadline=None)
@given(WRITES, CUTS, st.booleans())
def test_any_cuts_of_any_log(writes: list[tuple[bytes, bool]], cuts: list[tuple[float, float]], keeps_cr: bool) -> None:
    """Each response serves a random part of the helper's stdout, and some bytes are only in the log file."""

    async def check() -> None:
        async with serving() as api:
            api.log = HelperLog(keeps_cr=keeps_cr)
            for data, skipped in writes:
                api.log.skip(data) if skipped else api.log.write(data)
            size = len(api.log.body())
            api.script = [api.part(*sorted((int(one * size), int(other * size)))) for one, other in cuts]
            items = await api.read()
            assert others(items) == [LogEnd()]
            assert payload(items) == api.log.content

    asyncio.run(check())


async def test_a_broken_connection_is_opened_again(api: LogServer) -> None:
    api.log.write(b"one\ntwo")
    api.script = [api.then_silent(cut=True), api.then_silent(cut=True)]
    items = await api.read()
    assert payload(items) == b"one\ntwo"
    assert api.metrics.registry.get_sample_value("sealci_agent_log_reopened_total") == 2


async def test_a_refused_connection_is_retried() -> None:
    async with serving() as api:
        api.log.write(b"one\n")
        host = api.client.api.configuration.host
        api.client.api.configuration.host = "http://127.0.0.1:1"
        reading = asyncio.create_task(api.read())
        await poll_until("the client counts the API server as unreachable", lambda: not api.client.reachable)
        api.client.api.configuration.host = host
        assert payload(await reading) == b"one\n"


async def test_the_end_of_a_stream_is_not_the_end_of_the_log(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.script = [api.part()] * 3
    reading = asyncio.create_task(api.read())
    await poll_until("the log is requested a third time", lambda: len(api.queries) > 2)
    api.log.write(b"two\n")
    assert payload(await reading) == b"one\ntwo\n"


# ---- a helper that has ended


async def test_the_exact_number_of_missing_bytes_is_known_without_the_helper(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.log.skip(b"x" * 1_000_000)
    api.log.write(b"three\n")
    api.log.end()
    api.source.enter(LogState.ABANDONED)
    items = await api.read()
    assert payload(items) == b"one\nthree\n"
    assert others(items) == [LogGap(4, 1_000_000), LogEnd()]
    assert (api.queries, api.errands) == ([{"container": "helper"}], [])


async def test_what_the_node_has_rotated_away_is_a_gap(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.log.rotate()
    api.log.write(b"two\n")
    api.log.end()
    api.source.enter(LogState.ABANDONED)
    items = await api.read()
    assert payload(items) == b"two\n"
    assert others(items) == [LogGap(0, 4), LogEnd()]


async def test_a_helper_that_ends_before_the_log_loses_the_rest(api: LogServer) -> None:
    api.log.write(b"one\n")
    api.script = [api.then_silent(), api.part()]
    reading = asyncio.create_task(api.read())
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.source.enter(LogState.ABANDONED)
    items = await reading
    assert payload(items) == b"one\n"
    assert [item.why for item in others(items) if not isinstance(item, LogEnd | LogGap)] == [
        "container helper ended before the commands did; what it had not copied is lost"
    ]


async def test_a_helper_that_never_starts_the_commands_loses_nothing(api: LogServer) -> None:
    api.log.write(b"a marker\n")
    api.script = [api.then_silent()]
    reading = asyncio.create_task(api.read())
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.source.enter(LogState.UNUSED)
    assert others(await reading) == [LogEnd()]


# ---- the consumer of the follower's output


async def test_a_slow_consumer_stops_the_node(api: LogServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cluster.logs.request.FAST", 1 << 40)
    written = 0
    all_written = asyncio.Event()
    payload_of_frame = b"x" * 1000 + b"\n"

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64_000):
            await response.write(frame(written, payload_of_frame))
            written += len(payload_of_frame)
        all_written.set()
        return response

    api.script = [flood]
    items = follow(api.client, TARGET, 0, api.source, KEY, FAST)
    async with aclosing(items):
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

    api.log.write(b"one\n")
    api.script = [answer]
    async with aclosing(follow(api.client, TARGET, 0, api.source, KEY, FAST)) as items:
        await anext(items)
    await asyncio.wait_for(closed.wait(), 30)


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
