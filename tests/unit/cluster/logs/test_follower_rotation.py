"""Rotations of a log by the node: the log follower reports every gap, and reads a repeated file once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from agent.cluster.logs.follower import ContainerState, Timings, follow
from agent.cluster.logs.request import LogRequest
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogLost, LogPiece
from tests.fakes.kubelet_log import EPOCH, SECOND, stamp
from tests.fakes.waiting import poll_until
from tests.unit.cluster.logs.log_server import FAST, TARGET, LogServer, others, payload

if TYPE_CHECKING:
    pass


@pytest.mark.parametrize("limit", [10, 1000])
async def test_a_rotation_between_two_requests_is_a_gap(api: LogServer, limit: int) -> None:
    api.log.write(b"one\n", EPOCH)
    served = api.up_to(1 << 20)

    async def rotating(request: web.Request) -> web.StreamResponse:
        answer = await served(request)
        api.log.write(b"lost\n", EPOCH + 1)
        api.log.rotate()
        api.log.write(b"three\n", EPOCH + SECOND)
        return answer

    api.script = [rotating]
    since, until = stamp(EPOCH).decode(), stamp(EPOCH + SECOND).decode()
    items = await api.read(node_limit=limit)
    assert payload(items) == b"one\nthree\n"
    # If the follower has read less than `limit`, the size of a full file, lines are certainly missing. Otherwise the
    # follower may have read the old file to its end.
    assert others(items) == [LogGap(since, until, certain=limit > 100)]


async def test_an_ended_log_without_the_cursors_line_is_a_gap_after_three_reads(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    api.log.rotate()
    api.container.enter(ContainerState.TERMINATED)
    cursor = Cursor(stamp(EPOCH).decode(), 1, 4, 4)
    assert await api.read(cursor) == [LogGap(cursor.timestamp, "")]
    assert len(api.queries) == 3


async def test_a_missing_line_that_comes_back_is_no_gap(api: LogServer) -> None:
    async def empty(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"")

    api.log.write(b"one\ntwo\n", EPOCH)
    api.container.enter(ContainerState.TERMINATED)
    api.script = [empty]
    items = await api.read(Cursor(stamp(EPOCH).decode(), 1, 4, 4))
    assert payload(items) == b"two\n"
    assert others(items) == []


# ---- streams over rotations, as seen with real kubelets


OLD, NEW = stamp(EPOCH), stamp(EPOCH + 5 * SECOND)
HEAD = "limitBytes"


def serve_hole(api: LogServer, body: bytes, head: bytes | int, *, first: bytes = b"") -> None:
    """Script a log stream with a hole of five seconds, and the probes of the follower.

    The stream is `first`, then `body`. The node's current log file begins with `head`. If `head` is a number, the
    request for the file's beginning fails with this HTTP status.
    """
    api.log.write(b"not served\n", EPOCH + 9 * SECOND)

    async def served(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if first:
            await response.write(first)
            await poll_until(
                "the log is requested without follow", lambda: sum("follow" not in query for query in api.queries) > 0
            )
        await response.write(body)
        await poll_until("the log has ended", lambda: api.container.log_ended)
        return response

    async def probe(request: web.Request) -> web.StreamResponse:
        if HEAD not in request.query:
            return web.Response(body=first)
        return web.Response(status=head) if isinstance(head, int) else web.Response(body=head)

    api.script = [served, *[probe] * 10]


async def until_line(api: LogServer, line: bytes, timings: Timings = FAST) -> list[LogPiece | LogGap | LogLost]:
    """Follow the log until `line` has arrived. Return all items that the follower yielded."""
    items: list[LogPiece | LogGap | LogLost] = []
    async with aclosing(follow(api.client, TARGET, Cursor(), api.container, timings, 10)) as reading:
        async for item in reading:
            items.append(item)
            if payload(items).endswith(line):
                api.container.log_ended = True
                break
    return items


@pytest.mark.parametrize(
    ("head", "gap"),
    [
        (stamp(EPOCH - 1) + b" o", None),  # Both lines around the hole are in the current file.
        (OLD + b" o", None),
        # The current file begins with the line after the hole. An earlier file may hold unread lines.
        (NEW + b" n", LogGap(OLD.decode(), NEW.decode())),
        (stamp(EPOCH + 9 * SECOND) + b" n", LogGap(OLD.decode(), NEW.decode())),
        (
            stamp(EPOCH + SECOND) + b" n",
            LogGap(OLD.decode(), NEW.decode(), certain=True),
            # The current file begins with a line that the stream has left out.
        ),
        (b"", LogGap(OLD.decode(), NEW.decode())),
        (500, LogGap(OLD.decode(), NEW.decode())),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_hole_in_a_stream_is_compared_with_the_current_file(
    api: LogServer, head: bytes | int, gap: LogGap | None, at_once: bool
) -> None:
    lines = OLD + b" one\n", OLD + b" two\n", NEW + b" three\n", NEW + b" four\n"
    body = b"".join(lines) if at_once else b"".join(lines[1:])
    # A probe (a request without follow) gets only `first`, without the last line of the stream. So the probe does not
    # prove that the stream continues after a rotation.
    serve_hole(api, body, head, first=b"" if at_once else lines[0])
    items = await until_line(api, b"four\n", replace(FAST, stalled=0.05))
    assert payload(items) == b"one\ntwo\nthree\nfour\n" if at_once else payload(items).endswith(b"three\nfour\n")
    assert others(items) == ([gap] if gap else [])
    assert sum(HEAD in query for query in api.queries) == 1
    behind = items.index(gap) if gap else 0
    assert not gap or items[behind + 1] == LogPiece(b"", Cursor(NEW.decode(), 1, 0, 8))


async def test_a_small_log_needs_no_look_at_the_current_file(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    api.log.write(b"two\n", EPOCH + 60 * SECOND)
    assert payload(await api.read()) == b"one\ntwo\n"
    assert not any(HEAD in query for query in api.queries)


async def test_a_file_that_a_stream_repeats_after_a_hole_is_read_once(api: LogServer) -> None:
    """The kubelet sends the current file twice if the log stream was blocked during two rotations."""
    later = b"".join(stamp(EPOCH + 5 * SECOND + each) + b" %d\n" % each for each in range(3))

    async def twice(_: web.Request) -> web.StreamResponse:
        return web.Response(body=OLD + b" one\n" + later + later)

    async def head(_: web.Request) -> web.StreamResponse:
        return web.Response(body=later)

    api.log.write(b"0\n", EPOCH + 5 * SECOND)
    for each in (1, 2, 3):
        api.log.write(b"%d\n" % each, EPOCH + 5 * SECOND + each)
    api.script = [twice, head]
    items = await api.read(node_limit=10)
    assert payload(items) == b"one\n0\n1\n2\n3\n"
    assert others(items) == [LogGap(OLD.decode(), NEW.decode())]


async def test_a_stream_of_a_full_file_is_probed_soon(api: LogServer) -> None:
    api.log.write(b"one\n", EPOCH)
    silent = replace(FAST, stalled=0.05)
    api.script = [api.then_silent(), api.up_to(1 << 20)]
    reading = asyncio.create_task(api.read(timings=silent, node_limit=10))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.write(b"two\n", EPOCH + 1)
    assert payload(await reading) == b"one\ntwo\n"


async def test_a_stream_that_goes_on_over_files_is_not_probed_at_each_pause(
    api: LogServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.log.write(b"one\n", EPOCH)
    silences: list[float] = []
    block = LogRequest.block

    async def recorded(body: LogRequest, ended: asyncio.Task[None], silence: float, settle: float) -> bytes | None:
        silences.append(silence)
        return await block(body, ended, silence, settle)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(api.log.body())
        await poll_until("3 silences are noticed", lambda: len(silences) > 2)
        await response.write(stamp(EPOCH + 1) + b" two\n")
        await poll_until("4 silences are noticed", lambda: len(silences) > 3)
        await response.write(stamp(EPOCH + 2) + b" three\n")
        await poll_until("the log has ended", lambda: api.container.log_ended)
        return response

    async def probe(_: web.Request) -> web.StreamResponse:
        return web.Response(body=OLD + b" one\n")

    monkeypatch.setattr(LogRequest, "block", recorded)
    api.script = [answer, probe]
    items = await until_line(api, b"three\n", replace(FAST, stalled=0.05))
    assert payload(items) == b"one\ntwo\nthree\n"
    assert silences == [FAST.probe, 0.05, FAST.probe, FAST.probe]
