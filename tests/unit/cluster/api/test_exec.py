"""Exec in a container, against a websocket server that behaves as real API servers do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from agent.cluster.api.client import Client
from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.api.exec import (
    MAX_FRAME,
    MAX_STDERR,
    ExecDeadline,
    ExecError,
    ExecStream,
    exit_code_of,
    run,
)
from agent.settings import ClusterSettings
from agent.telemetry.metrics import Metrics

Script = Callable[[web.WebSocketResponse, web.Request], Awaitable[None]]

TARGET = ContainerRef("actions", "pod-1", "helper")
SUCCESS = b'\x03{"metadata":{},"status":"Success"}'


def failed(code: str) -> bytes:
    cause = {"reason": "ExitCode", "message": code}
    return json.dumps({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [cause]}}).encode()


class Api:
    """A fake API server with one pod. A test sets `script`, a function that plays the server's side of an exec."""

    def __init__(self) -> None:
        self.script: Script | None = None
        self.refusal = 0
        self.requests: list[web.Request] = []
        self.closed = asyncio.Event()
        self.autoping = True

    async def exec(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if self.refusal:
            return web.Response(status=self.refusal, text="no")
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",), autoping=self.autoping)
        await socket.prepare(request)
        assert self.script is not None
        try:
            await self.script(socket, request)
        finally:
            self.closed.set()
        return socket

    def plays(self, *frames: bytes) -> None:
        """Make the server answer an exec with these websocket frames and then close the websocket normally."""

        async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
            for frame in frames:
                await socket.send_bytes(frame)

        self.script = script


@pytest.fixture
async def api() -> Api:
    return Api()


@pytest.fixture
async def client(api: Api) -> AsyncIterator[Client]:
    app = web.Application()
    app.router.add_get("/api/v1/namespaces/actions/pods/pod-1/exec", api.exec)
    async with TestServer(app) as server:
        configuration = Configuration(host=str(server.make_url("")).rstrip("/"), api_key={"BearerToken": "Bearer t"})
        made = Client(ApiClient(configuration), ClusterSettings(), Metrics())
        yield made
        await made.close()
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("exec-watch")] == []


def requests_counted(client: Client, code: str) -> float | None:
    labels = {"verb": "create", "resource": "pods/exec", "code": code}
    return client.metrics.registry.get_sample_value("sealci_agent_k8s_requests_total", labels)


async def read(client: Client, seconds: float = 10, silence: float = 30) -> tuple[bytes, int]:
    async with ExecStream(client, TARGET, ["cat", "file"], seconds=seconds, silence=silence) as stream:
        data = b"".join([bytes(chunk) async for chunk in stream])
        return data, stream.exit_code


# ---- success


async def test_a_command_and_its_streams(api: Api, client: Client) -> None:
    api.plays(b"\x01", b"\x02", b"\x01out", b"\x02err", b"\x01put", SUCCESS)
    result = await run(client, TARGET, ["cat", "a b", "ü&c=d+e%", "", "-x\n"], seconds=10)
    assert (result.exit_code, result.stdout, result.stderr) == (0, b"output", b"err")
    (request,) = api.requests
    assert request.query.getall("command") == ["cat", "a b", "ü&c=d+e%", "", "-x\n"]
    assert request.query["container"] == "helper"
    assert (request.query["stdout"], request.query["stderr"]) == ("true", "true")
    assert "stdin" not in request.query
    assert request.headers["authorization"] == "Bearer t"
    assert requests_counted(client, "2xx") == 1


async def test_bytes_are_bytes(api: Api, client: Client) -> None:
    data = bytes(range(256)) * 500
    api.plays(b"\x01" + data, b"\x01" + data[:1], SUCCESS)
    assert await read(client) == (data + data[:1], 0)


async def test_an_exit_code(api: Api, client: Client) -> None:
    api.plays(b"\x03" + failed("7"))
    assert await read(client) == (b"", 7)


async def test_nothing_is_read_after_the_status(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        await socket.send_bytes(SUCCESS)
        await socket.send_bytes(b"\x01late")
        # The fake server waits here until the client closes the connection, and does not close it first.
        await socket.receive()

    api.script = script
    assert await read(client) == (b"", 0)


async def test_a_ping_of_the_server_is_answered(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        await socket.ping(b"there?")
        message = await socket.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"there?")
        await socket.send_bytes(SUCCESS)

    api.script, api.autoping = script, False
    assert await read(client) == (b"", 0)


async def test_stderr_is_bounded(api: Api, client: Client) -> None:
    api.plays(*[b"\x02" + b"e" * 10_000] * 5, SUCCESS)
    assert (await run(client, TARGET, ["sh"], seconds=10)).stderr == b"e" * MAX_STDERR


# ---- failure


async def test_a_normal_close_without_a_status_is_an_error(api: Api, client: Client) -> None:
    api.plays(b"\x01half of it")
    with pytest.raises(ExecError, match="cut before its status") as raised:
        await read(client)
    assert raised.value.retryable


async def test_a_connection_that_breaks_is_an_error(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, request: web.Request) -> None:
        await socket.send_bytes(b"\x01half of it")
        assert request.transport is not None
        request.transport.abort()

    api.script = script
    with pytest.raises(ExecError, match=r"cut before its status|broke"):
        await read(client)


async def test_a_frame_too_large(api: Api, client: Client) -> None:
    api.plays(b"\x01" + bytes(MAX_FRAME), SUCCESS)
    with pytest.raises(ExecError, match="broke"):
        await read(client)


async def test_a_text_frame_is_an_error(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        await socket.send_str("\x01text")

    api.script = script
    with pytest.raises(ExecError, match="TEXT"):
        await read(client)


async def test_a_status_is_bounded(api: Api, client: Client) -> None:
    api.plays(b"\x03{" + b" " * (1 << 20), SUCCESS)
    with pytest.raises(ExecError):
        await read(client)


async def test_output_of_a_short_command_is_bounded(api: Api, client: Client) -> None:
    api.plays(b"\x01" + b"x" * 101, SUCCESS)
    with pytest.raises(ExecError, match="more than 100 bytes"):
        await run(client, TARGET, ["yes"], seconds=10, max_stdout=100)


@pytest.mark.parametrize(("status", "retryable"), [(404, False), (403, False), (400, False), (500, True), (429, True)])
async def test_a_refusal(api: Api, client: Client, status: int, retryable: bool) -> None:
    api.refusal = status
    with pytest.raises(ExecError) as raised:
        await read(client)
    assert (raised.value.status, raised.value.retryable) == (status, retryable)
    assert requests_counted(client, f"{status // 100}xx") == 1


async def test_a_refused_connection_is_retryable() -> None:
    client = Client(ApiClient(Configuration(host="http://127.0.0.1:1")), ClusterSettings(), Metrics())
    with pytest.raises(ExecError, match="could not be started") as raised:
        await read(client)
    assert raised.value.retryable
    await client.close()


async def test_no_exit_code_before_the_end(api: Api, client: Client) -> None:
    api.plays(b"\x01a", SUCCESS)
    async with ExecStream(client, TARGET, ["cat"], seconds=10) as stream:
        with pytest.raises(ExecError):
            _ = stream.exit_code


STATUSES = {
    "container is gone": {"status": "Failure", "message": "container not found", "code": 500},
    "no details": {"status": "Failure", "reason": "InternalError", "message": "exec: tar: not found"},
    "no causes": {"status": "Failure", "reason": "NonZeroExitCode", "details": {}},
    "empty causes": {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": []}},
    "other cause": {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"message": "7"}]}},
    "words": {"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode"}]}},
    "no status": {},
    "a list": [],
    "nothing": None,
}


@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES.keys())
def test_a_failure_without_an_exit_code_is_an_error(status: object) -> None:
    with pytest.raises(ExecError):
        exit_code_of(json.dumps(status).encode())


@pytest.mark.parametrize("status", [b"", b"{", b"\xff", b"[" * 50_000, failed("seven")])
def test_a_status_that_cannot_be_read_is_an_error(status: bytes) -> None:
    with pytest.raises(ExecError, match="cannot be read"):
        exit_code_of(status)


def test_exit_codes() -> None:
    assert exit_code_of(SUCCESS[1:]) == 0
    assert [exit_code_of(failed(code)) for code in ("1", "137", "255")] == [1, 137, 255]


# ---- timeouts


async def test_the_deadline_ends_a_running_command(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        await socket.send_bytes(b"\x01begin")
        await socket.receive()

    api.script = script
    with pytest.raises(ExecDeadline):
        await read(client, seconds=0.1)
    await api.closed.wait()


async def test_the_deadline_ends_endless_output(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        while not socket.closed:
            await socket.send_bytes(b"\x01" + bytes(30_000))

    api.script = script
    with pytest.raises(ExecDeadline):
        await read(client, seconds=0.2)
    await api.closed.wait()


async def test_the_deadline_holds_for_the_handshake(client: Client) -> None:
    hold = asyncio.Event()

    async def never(_: web.Request) -> web.StreamResponse:
        await hold.wait()
        return web.Response(status=500)

    app = web.Application()
    app.router.add_get("/{path:.*}", never)
    async with TestServer(app) as server:
        client.api.configuration.host = str(server.make_url("")).rstrip("/")
        with pytest.raises(ExecDeadline, match="not started"):
            await read(client, seconds=0.1)
        hold.set()


async def test_a_dead_connection_is_detected(api: Api, client: Client) -> None:
    release = asyncio.Event()

    async def script(socket: web.WebSocketResponse, request: web.Request) -> None:
        await socket.send_bytes(b"\x01begin")
        assert request.transport is not None
        request.transport.pause_reading()
        await release.wait()
        request.transport.abort()

    api.script = script
    with pytest.raises(ExecError, match="does not answer") as raised:
        await read(client, silence=0.1)
    assert raised.value.retryable
    assert not isinstance(raised.value, ExecDeadline)
    release.set()


async def test_a_silent_server_that_answers_pings_is_not_dead(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        pings = 0
        while pings < 5:
            message = await socket.receive()
            assert message.type is aiohttp.WSMsgType.PING
            await socket.pong(message.data)
            pings += 1
        await socket.send_bytes(SUCCESS)

    api.script, api.autoping = script, False
    assert await read(client, silence=0.1) == (b"", 0)


async def test_a_slow_reader_keeps_its_connection(api: Api, client: Client) -> None:
    frames, silence = 400, 0.05

    async def script(socket: web.WebSocketResponse, _request: web.Request) -> None:
        for _ in range(frames):
            await socket.send_bytes(b"\x01" + bytes(30_000))
        await socket.send_bytes(SUCCESS)

    api.script, api.autoping = script, False
    got = 0
    async with ExecStream(client, TARGET, ["cat"], seconds=30, silence=silence) as stream:
        async for chunk in stream:
            if got == 0:
                # The test uses real time, because the sockets are real. Here, the reader leaves pongs and data unread
                # for four times the limit `silence`. aiohttp's own heartbeat would close such a connection.
                await asyncio.sleep(4 * silence)
            got += len(chunk)
    assert (got, stream.exit_code) == (frames * 30_000, 0)


async def test_leaving_early_closes_the_connection(api: Api, client: Client) -> None:
    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        while not socket.closed:
            await socket.send_bytes(b"\x01" + bytes(30_000))

    api.script = script
    async with ExecStream(client, TARGET, ["cat"], seconds=30) as stream:
        assert len(await anext(stream)) == 30_000
    await api.closed.wait()


async def test_cancellation_closes_the_connection(api: Api, client: Client) -> None:
    begun = asyncio.Event()

    async def script(socket: web.WebSocketResponse, _: web.Request) -> None:
        begun.set()
        await socket.receive()

    api.script = script
    reading = asyncio.create_task(read(client), name="reading")
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await api.closed.wait()
