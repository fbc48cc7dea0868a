"""Following a log against a scripted API server: whatever breaks, every byte comes once or its loss is said."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from agent.cluster.api.client import Client
from agent.cluster.logs.follower import ContainerState, Patience, follow
from agent.cluster.logs.request import Body, Target
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogLost, LogPiece
from agent.settings import ClusterSettings
from agent.telemetry.metrics import Metrics
from tests.fakes.kubelet_log import EPOCH, SECOND, KubeletLog, stamp
from tests.fakes.waiting import poll_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FAST = Patience(
    settle=0.05,
    pause=0.002,
    longest_pause=0.01,
    refused=0.1,
    give_up=0.2,
)
PROBING = replace(FAST, probe=0.05, longest_probe=0.1)
PATH = "/api/v1/namespaces/actions/pods/pod-1/log"
TARGET = Target("actions", "pod-1", "action")


class Container:
    """What a watch would tell."""

    def __init__(self, state: ContainerState = ContainerState.RUNNING) -> None:
        self.state = state
        self.log_ended = False
        self.changed = asyncio.Event()

    def enter(self, state: ContainerState) -> None:
        self.state = state
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def left(self, state: ContainerState) -> None:
        while self.state is state:
            await self.changed.wait()


class Api:
    """The log endpoint. `script` answers the first requests, `log` all others: whole, then the container has ended."""

    def __init__(self) -> None:
        self.log = KubeletLog()
        self.container = Container()
        self.script: list[Handler] = []
        self.queries: list[dict[str, str]] = []
        self.metrics = Metrics()
        self.client: Client

    @property
    def follows(self) -> int:
        return sum("follow" in query for query in self.queries)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert request.path == PATH
        self.queries.append(dict(request.query))
        if self.script:
            return await self.script.pop(0)(request)
        return await self.whole(request)

    def body(self, request: web.Request) -> bytes:
        return self.log.body(request.query.get("sinceTime", ""))

    async def whole(self, request: web.Request) -> web.StreamResponse:
        self.container.enter(ContainerState.TERMINATED)
        return web.Response(body=self.body(request))

    def status(self, code: int, message: str = "", **headers: str) -> Handler:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.json_response({"kind": "Status", "code": code, "message": message}, status=code, headers=headers)

        return answer

    def up_to(self, position: int) -> Handler:
        """Serve a body that ends cleanly at a byte, counted in the body of the whole log."""

        async def answer(request: web.Request) -> web.StreamResponse:
            body = self.body(request)
            return web.Response(body=body[: max(0, position - len(self.log.body()) + len(body))])

        return answer

    def then_silent(self, *, cut: bool = False) -> Handler:
        """Serve what there is now and keep the response open, or break it off."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(self.body(request))
            if cut:
                assert request.transport
                request.transport.abort()
            await asyncio.Event().wait()
            return response

        return answer

    async def read(
        self, cursor: Cursor | None = None, patience: Patience = FAST, node_limit: int = 1 << 20
    ) -> list[LogPiece | LogGap | LogLost]:
        items = follow(self.client, TARGET, cursor or Cursor(), self.container, patience, node_limit)
        async with aclosing(items):
            return [item async for item in items]


def payload(items: list[LogPiece | LogGap | LogLost]) -> bytes:
    return b"".join(item.data for item in items if isinstance(item, LogPiece))


def others(items: list[LogPiece | LogGap | LogLost]) -> list[LogGap | LogLost]:
    return [item for item in items if not isinstance(item, LogPiece)]


@asynccontextmanager
async def serving() -> AsyncIterator[Api]:
    api = Api()
    app = web.Application()
    app.router.add_get("/{path:.*}", api.answer)
    server = TestServer(app, handler_cancellation=True)
    await server.start_server()
    configuration = Configuration(host=str(server.make_url("")).rstrip("/"))
    configuration.api_key = {"BearerToken": "Bearer token"}
    configuration.client_session_kwargs = {"read_bufsize": 1 << 16}
    api.client = Client(ApiClient(configuration), ClusterSettings(), api.metrics)
    try:
        yield api
    finally:
        await api.client.close()
        await server.close()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with serving() as served:
        yield served


# ---- what is asked


async def test_one_request_reads_the_whole_log(api: Api) -> None:
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


async def test_a_resumed_read_asks_from_the_whole_second_in_utc(api: Api) -> None:
    api.log.zone = 120
    api.log.write(b"one\ntwo\n", EPOCH + 17)
    cursor = Cursor(stamp(EPOCH + 17, 120).decode(), 1, 4, 4)
    assert payload(await api.read(cursor)) == b"two\n"
    assert api.queries[0]["sinceTime"] == stamp(EPOCH).decode().replace(".000000000", "")


async def test_nothing_is_asked_while_the_container_waits(api: Api) -> None:
    api.container.enter(ContainerState.WAITING)
    api.log.write(b"x\n", EPOCH)
    reading = asyncio.create_task(api.read())
    await asyncio.sleep(0)
    assert api.queries == []
    api.container.enter(ContainerState.RUNNING)
    assert payload(await reading) == b"x\n"
    assert [query.get("follow") for query in api.queries][:1] == ["true"]


async def test_an_ended_container_is_read_without_following(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    api.container.enter(ContainerState.TERMINATED)
    assert payload(await api.read()) == b"one\n"
    assert [query.get("follow") for query in api.queries] == [None]


async def test_a_pod_that_is_gone_after_the_last_marker_has_lost_nothing(api: Api) -> None:
    api.container.enter(ContainerState.GONE)
    api.container.log_ended = True
    assert await api.read() == []
    assert api.queries == []


@pytest.mark.parametrize(("node_limit", "requests"), [(1 << 20, ["true"]), (1, ["true", None])])
async def test_the_last_marker_saves_the_last_read_of_an_ended_container(
    api: Api, node_limit: int, requests: list[str | None]
) -> None:
    """It does not if the node's file may be full: the stream may stand still although more was written."""
    api.log.write(b"one\nlast\n", EPOCH)
    api.script = [api.then_silent()]
    got = b""
    async with asyncio.timeout(20):
        patience = Patience(settle=60.0)
        async for item in follow(api.client, TARGET, Cursor(), api.container, patience, node_limit):
            assert isinstance(item, LogPiece)
            got += item.data
            api.container.log_ended = got.endswith(b"last\n")
            api.container.enter(ContainerState.TERMINATED)
    assert got == b"one\nlast\n"
    assert [query.get("follow") for query in api.queries] == requests


async def test_the_last_marker_ends_no_stream_of_a_container_that_runs(api: Api) -> None:
    """A process of the commands prints the marker, is silent, and works on."""
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


async def test_what_follows_a_forged_last_marker_is_read_when_the_stream_breaks(api: Api) -> None:
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


async def test_an_error_after_the_last_marker_is_no_lost_log(api: Api) -> None:
    api.container.enter(ContainerState.TERMINATED)
    api.container.log_ended = True
    api.script = [api.status(404)] * 1000
    assert await api.read() == []


# ---- cuts


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
async def test_a_stream_cut_at_any_byte_goes_on_at_the_next(api: Api, step: int) -> None:
    for number in range(6):
        api.log.write(b"line \xff\x00\r %d\n" % number * (number % 3), EPOCH + number // 2 * SECOND)
    api.log.write(b"no newline", EPOCH + 3 * SECOND)
    api.script = [api.up_to(position) for position in range(step, len(api.log.body()), step)]
    items = await api.read()
    assert others(items) == []
    assert payload(items) == api.log.payload()


async def test_random_cuts_of_random_logs(api: Api) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for _ in range(20):
        api.log = KubeletLog(chance.choice([0, 90]), chance.choice([5, 1000]))
        api.container.enter(ContainerState.RUNNING)
        at = EPOCH
        for _ in range(chance.randrange(30)):
            at += chance.choice([0, 0, 1, SECOND])
            api.log.write(chance.randbytes(chance.randrange(40)) + chance.choice([b"", b"\n"]), at)
        size = len(api.log.body())
        api.script = [api.up_to(position) for position in sorted(chance.choices(range(size + 1), k=8))]
        items = await api.read()
        assert others(items) == []
        assert payload(items) == api.log.payload()


async def test_a_line_of_five_mebibytes_is_cut_in_its_middle(api: Api) -> None:
    api.log.write(b"before\n" + b"0123456789abcdef" * (5 << 16) + b"\nafter\n", EPOCH)
    api.script = [api.up_to(position << 20) for position in (1, 2, 4)]
    items = await api.read()
    assert payload(items) == api.log.payload()
    assert max(len(item.data) for item in items if isinstance(item, LogPiece)) < 1 << 20


async def test_a_thousand_lines_of_one_nanosecond(api: Api) -> None:
    api.log.write(b"".join(b"%d\n" % number for number in range(1000)), EPOCH + 5)
    api.script = [api.up_to(position) for position in (10_000, 10_010, 25_000)]
    assert payload(await api.read()) == api.log.payload()


async def test_a_connection_that_breaks_is_opened_again(api: Api) -> None:
    api.log.write(b"one\ntwo", EPOCH)
    api.script = [api.then_silent(cut=True), api.then_silent(cut=True)]
    items = await api.read()
    assert payload(items) == b"one\ntwo"
    assert api.metrics.log_reopened._value.get() == 2


async def test_a_server_that_refuses_connections_is_asked_again() -> None:
    async with serving() as api:
        api.log.write(b"one\n", EPOCH)
        host = api.client.api.configuration.host
        api.client.api.configuration.host = "http://127.0.0.1:1"
        reading = asyncio.create_task(api.read())
        await poll_until("the client counts the API server as unreachable", lambda: not api.client.reachable)
        api.client.api.configuration.host = host
        assert payload(await reading) == b"one\n"


async def test_the_end_of_a_stream_is_not_the_end_of_the_log(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.up_to(1 << 20)] * 3
    reading = asyncio.create_task(api.read())
    await poll_until("the log is requested a third time", lambda: len(api.queries) > 2)
    api.log.write(b"two\n", EPOCH + SECOND)
    assert payload(await reading) == b"one\ntwo\n"


# ---- answers that are no log


@pytest.mark.parametrize("code", [401, 429, 500, 503])
async def test_a_failing_server_is_asked_again(api: Api, code: int) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.status(code)] * 3
    items = await api.read(patience=Patience(pause=0.001, longest_pause=0.001, refused=0, give_up=0))
    assert payload(items) == b"one\n"
    assert others(items) == []


async def test_retry_after_is_honoured(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("agent.cluster.logs.follower.asyncio.sleep", sleep)
    api.log.write(b"one\n", EPOCH)
    api.script = [api.status(429, **{"Retry-After": "7"}), api.status(503, **{"Retry-After": "9999"})]
    assert payload(await api.read()) == b"one\n"
    assert slept == [7, 60]


async def test_a_container_that_waits_to_start_is_waited_for(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    waiting = 'container "action" in pod "pod-1" is waiting to start: ContainerCreating'
    api.script = [api.status(400, waiting)] * 30
    items = await api.read(patience=Patience(pause=0.001, longest_pause=0.001, refused=0))
    assert payload(items) == b"one\n"
    assert others(items) == []


async def test_a_pod_that_is_gone_ends_the_log(api: Api) -> None:
    api.script = [api.status(404, 'pods "pod-1" not found')]
    assert await api.read() == [LogLost("the pod is gone")]
    api.container.enter(ContainerState.GONE)
    assert await api.read() == [LogLost("the pod is gone")]
    assert len(api.queries) == 1


@pytest.mark.parametrize("code", [400, 403, 404])
async def test_a_lasting_refusal_ends_the_log(api: Api, code: int) -> None:
    api.script = [api.status(code, "no")] * 1000
    items = await api.read()
    assert items == [LogLost(f"get pods/log: no (HTTP {code})")]
    assert len(api.queries) > 1


async def test_an_ended_log_that_cannot_be_had_ends_too(api: Api) -> None:
    api.container.enter(ContainerState.TERMINATED)
    api.script = [api.status(500, "no")] * 1000
    assert await api.read() == [LogLost("get pods/log: no (HTTP 500)")]
    assert len(api.queries) > 1


@pytest.mark.parametrize("state", [ContainerState.RUNNING, ContainerState.TERMINATED])
async def test_the_kubelets_excuse_is_no_log(api: Api, state: ContainerState) -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(text="unable to retrieve container logs for containerd://0123")

    api.container.enter(state)
    api.script = [answer] * 1000
    assert await api.read() == [LogLost("the node no longer has the container's log")]


async def test_a_cursor_that_is_none_is_said(api: Api) -> None:
    items = await api.read(Cursor("yesterday", 1))
    assert [type(item) for item in items] == [LogLost]


# ---- silence


async def test_a_dead_stream_is_found_by_a_plain_read(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.then_silent(), api.up_to(1 << 20)]
    reading = asyncio.create_task(api.read(patience=PROBING))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.write(b"two\n", EPOCH + 1)
    assert payload(await reading) == b"one\ntwo\n"
    # The probe, which finds the second line, and a new stream.
    assert [query.get("follow") for query in api.queries][:3] == ["true", None, "true"]


async def test_a_silent_stream_that_lives_is_kept(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.log.write(b"one\n", EPOCH)
    waits: list[tuple[float, bool]] = []
    got = b""
    block = Body.block

    async def noted(body: Body, ended: asyncio.Task[None], silence: float, settle: float) -> bytes | None:
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
        # Only what the stream has brought: a probe that overtakes it would prove it dead.
        return web.Response(body=api.log.body() + (stamp(EPOCH + 1) + b" two\n" if b"two" in got else b""))

    monkeypatch.setattr(Body, "block", noted)
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


async def test_an_ended_container_may_still_have_something_to_say(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    api.log.write(b"last\n", EPOCH + 1)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(stamp(EPOCH) + b" one\n")
        api.container.enter(ContainerState.TERMINATED)
        await asyncio.sleep(0.02)
        await response.write(stamp(EPOCH + 1) + b" last\n")
        return response

    api.script = [answer]
    got = b""
    async for item in follow(api.client, TARGET, Cursor(), api.container, Patience()):
        assert isinstance(item, LogPiece)
        got += item.data
        api.container.log_ended = got.endswith(b"last\n")
    assert got == b"one\nlast\n"
    assert len(api.queries) == 1


async def test_headers_that_come_with_the_first_line_are_waited_for(api: Api) -> None:
    """The kubelet sends no header before the first byte of the log."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await poll_until("the log is requested a third time", lambda: len(api.queries) > 2)
        api.log.write(b"late\n", EPOCH)
        return await api.whole(request)

    async def probe(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"")

    api.script = [answer, probe, probe]
    assert payload(await api.read(patience=PROBING)) == b"late\n"
    assert api.follows == 1


async def test_a_stream_that_outlives_its_container_is_left(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    api.script = [api.then_silent()]
    reading = asyncio.create_task(api.read(patience=Patience(probe=1000, settle=0.05)))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.write(b"two\n", EPOCH + 1)
    api.container.enter(ContainerState.TERMINATED)
    assert payload(await reading) == b"one\ntwo\n"
    assert [query.get("follow") for query in api.queries] == ["true", None]


# ---- rotation


@pytest.mark.parametrize("limit", [10, 1000])
async def test_a_rotation_while_nobody_read_is_a_gap(api: Api, limit: int) -> None:
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
    # Less of the file was read than any file has: something followed. Otherwise it may have ended there.
    assert others(items) == [LogGap(since, until, certain=limit > 100)]


async def test_an_ended_log_without_the_cursors_line_is_a_gap_once_that_is_sure(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    api.log.rotate()
    api.container.enter(ContainerState.TERMINATED)
    cursor = Cursor(stamp(EPOCH).decode(), 1, 4, 4)
    assert await api.read(cursor) == [LogGap(cursor.timestamp, "")]
    assert len(api.queries) == 3


async def test_a_missing_line_that_comes_back_is_no_gap(api: Api) -> None:
    async def empty(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"")

    api.log.write(b"one\ntwo\n", EPOCH)
    api.container.enter(ContainerState.TERMINATED)
    api.script = [empty]
    items = await api.read(Cursor(stamp(EPOCH).decode(), 1, 4, 4))
    assert payload(items) == b"two\n"
    assert others(items) == []


# ---- a follower over rotations, as kubelets were seen to serve it


OLD, NEW = stamp(EPOCH), stamp(EPOCH + 5 * SECOND)
HEAD = "limitBytes"


def skips(api: Api, body: bytes, head: bytes | int, *, first: bytes = b"") -> None:
    """Let one stream serve a body whose lines are five seconds apart, and the node's file begin with `head`."""
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


async def until_line(api: Api, line: bytes, patience: Patience = FAST) -> list[LogPiece | LogGap | LogLost]:
    """Read until a line has come."""
    items: list[LogPiece | LogGap | LogLost] = []
    async with aclosing(follow(api.client, TARGET, Cursor(), api.container, patience, 10)) as reading:
        async for item in reading:
            items.append(item)
            if payload(items).endswith(line):
                api.container.log_ended = True
                break
    return items


@pytest.mark.parametrize(
    ("head", "gap"),
    [
        (stamp(EPOCH - 1) + b" o", None),  # both lines are of the current file
        (OLD + b" o", None),
        (NEW + b" n", LogGap(OLD.decode(), NEW.decode())),  # a file begins there: there may have been one more
        (stamp(EPOCH + 9 * SECOND) + b" n", LogGap(OLD.decode(), NEW.decode())),
        (stamp(EPOCH + SECOND) + b" n", LogGap(OLD.decode(), NEW.decode(), certain=True)),  # a line that never came
        (b"", LogGap(OLD.decode(), NEW.decode())),
        (500, LogGap(OLD.decode(), NEW.decode())),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_hole_in_a_stream_is_held_against_the_current_file(
    api: Api, head: bytes | int, gap: LogGap | None, at_once: bool
) -> None:
    lines = OLD + b" one\n", OLD + b" two\n", NEW + b" three\n", NEW + b" four\n"
    body = b"".join(lines) if at_once else b"".join(lines[1:])
    # A probe shows a line that is not the cursor's: the stream is not known to go on over files.
    skips(api, body, head, first=b"" if at_once else lines[0])
    items = await until_line(api, b"four\n", replace(FAST, stalled=0.05))
    assert payload(items) == b"one\ntwo\nthree\nfour\n" if at_once else payload(items).endswith(b"three\nfour\n")
    assert others(items) == ([gap] if gap else [])
    assert sum(HEAD in query for query in api.queries) == 1
    behind = items.index(gap) if gap else 0
    assert not gap or items[behind + 1] == LogPiece(b"", Cursor(NEW.decode(), 1, 0, 8))


async def test_no_small_log_is_looked_into(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    api.log.write(b"two\n", EPOCH + 60 * SECOND)
    assert payload(await api.read()) == b"one\ntwo\n"
    assert not any(HEAD in query for query in api.queries)


async def test_a_file_that_begins_again_behind_a_hole_is_not_read_twice(api: Api) -> None:
    """A kubelet's follower that was held back over two rotations opens the current file twice."""
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


async def test_a_stream_of_a_full_file_is_looked_into_soon(api: Api) -> None:
    api.log.write(b"one\n", EPOCH)
    silent = replace(FAST, stalled=0.05)
    api.script = [api.then_silent(), api.up_to(1 << 20)]
    reading = asyncio.create_task(api.read(patience=silent, node_limit=10))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    api.log.write(b"two\n", EPOCH + 1)
    assert payload(await reading) == b"one\ntwo\n"


async def test_a_stream_that_is_known_to_go_on_is_not_looked_into_at_each_pause(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.log.write(b"one\n", EPOCH)
    silences: list[float] = []
    block = Body.block

    async def noted(body: Body, ended: asyncio.Task[None], silence: float, settle: float) -> bytes | None:
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

    monkeypatch.setattr(Body, "block", noted)
    api.script = [answer, probe]
    items = await until_line(api, b"three\n", replace(FAST, stalled=0.05))
    assert payload(items) == b"one\ntwo\nthree\n"
    assert silences == [FAST.probe, 0.05, FAST.probe, FAST.probe]


# ---- the consumer


async def test_nothing_is_read_while_nothing_is_taken(api: Api) -> None:
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


async def test_a_follower_that_is_left_closes_its_connection(api: Api) -> None:
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
async def test_a_reader_may_be_cancelled_while_it_waits(api: Api, headers: bool) -> None:
    async def mute(_: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    api.script = [api.then_silent() if headers else mute]
    reading = asyncio.create_task(api.read(patience=Patience()))
    await poll_until("the log is requested", lambda: len(api.queries) > 0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("log:")]
