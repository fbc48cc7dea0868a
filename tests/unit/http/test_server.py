"""The port for probes, metrics and the status page: errors of a handler, and floods of connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest
import structlog

from agent.http import connections
from agent.http.server import Http
from agent.settings import HttpSettings
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


@asynccontextmanager
async def serving(page: Callable[[], str]) -> AsyncIterator[tuple[aiohttp.ClientSession, Metrics, int]]:
    metrics, started = Metrics(), asyncio.Event()
    http = Http(HttpSettings(host="127.0.0.1", port=0, status_page=True), metrics, lambda: "", page)
    task = asyncio.create_task(http.run(started), name="http")
    try:
        await started.wait()
        # Each request opens a connection of its own, as the kubelet does.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{http.port}", connector=connector) as session:
            yield session, metrics, http.port
    finally:
        task.cancel()
        await asyncio.wait({task})


def errors(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("sealci_agent_internal_errors_total", {"where": "http"})


async def test_an_error_of_a_handler_is_answered_with_500_and_counted() -> None:
    def broken() -> str:
        raise RuntimeError("a defect of the status page")

    async with serving(broken) as (session, metrics, _):
        async with session.get("/") as answer:
            assert answer.status == 500
        assert errors(metrics) == 1
        async with session.get("/livez") as answer:
            assert answer.status == 200


async def test_an_unknown_path_is_no_error_of_the_agent() -> None:
    async with serving(lambda: "page") as (session, metrics, _):
        async with session.get("/nothing") as answer:
            assert answer.status == 404
        assert errors(metrics) == 0


# An unfinished head of an HTTP request. A flood of such requests is an attack.
HALF = b"GET /livez HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture
def half_open() -> Iterator[Callable[[int, int], list[socket.socket]]]:
    """Yield a function `(port, number)` that opens `number` more connections.

    The function returns all connections that it has opened so far.
    """
    opened: list[socket.socket] = []

    def open_connections(port: int, number: int) -> list[socket.socket]:
        for _ in range(number):
            one = socket.socket()
            one.setblocking(False)
            opened.append(one)
            assert one.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
        return opened

    yield open_connections
    for one in opened:
        one.close()


async def send_half(sockets: list[socket.socket]) -> None:
    loop = asyncio.get_running_loop()
    for one in sockets:
        try:
            await loop.sock_sendall(one, HALF)
        except (ConnectionError, BrokenPipeError):
            continue


async def count_open(sockets: list[socket.socket]) -> int:
    """Return the number of these connections that the server has not closed."""
    number = 0
    for one in sockets:
        try:
            number += one.recv(1) != b""
        except BlockingIOError:
            number += 1
        except ConnectionError:
            pass
    return number


async def closed(one: socket.socket) -> None:
    """Return when the server has closed the connection."""
    with contextlib.suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(one, 1):
            pass


async def get(session: aiohttp.ClientSession, path: str) -> int:
    async with asyncio.timeout(30), session.get(path) as answer:
        return answer.status


async def test_half_requests_keep_no_probe_out_and_are_closed(
    half_open: Callable[[int, int], list[socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 3.0)
    async with serving(lambda: "page") as (session, _, port):
        # Each round opens fewer connections than the kernel can hold until the server accepts them. The server cannot
        # accept them during a round, because the test and the server share one event loop.
        for _ in range(4):
            await send_half(half_open(port, 100)[-100:])
            assert await get(session, "/livez") == 200
        sockets = half_open(port, 0)
        assert len(sockets) == 400
        assert await count_open(sockets) <= connections.MAX_CONNECTIONS
        async with asyncio.timeout(30):
            await asyncio.gather(*(closed(one) for one in sockets))
        assert await get(session, "/livez") == 200


async def test_an_idle_connection_is_closed_and_a_used_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(lambda: "page") as (_, _, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(HALF + b"\r\n")
            assert await reader.readuntil(b"ok\n")
            # After its first request, only the longer limit counts for a connection.
            monkeypatch.setattr(connections, "HEAD_SECONDS", 0.0)
            await asyncio.sleep(0.7)
        monkeypatch.setattr(connections, "IDLE_SECONDS", 0.0)
        async with asyncio.timeout(30):
            assert await reader.read() == b""
        writer.close()


async def test_a_failing_accept_is_logged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ACCEPT_PAUSE", 0.01)
    loop, attempts = asyncio.get_running_loop(), 0

    async def no_descriptor(_: socket.socket) -> None:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        raise OSError(errno.EMFILE, "Too many open files")

    async with serving(lambda: "page") as (session, _, _):
        with structlog.testing.capture_logs() as logs:
            with monkeypatch.context() as patched:
                patched.setattr(loop, "sock_accept", no_descriptor)
                # This request succeeds. The server was waiting in the unpatched `sock_accept` already, and that call
                # accepts the request's connection.
                assert await get(session, "/livez") == 200
                await asyncio.sleep(0.2)
            assert await get(session, "/livez") == 200
    assert attempts > 3
    assert [entry["event"] for entry in logs] == ["the HTTP port cannot accept connections"]
