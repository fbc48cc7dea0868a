"""A fake API server that serves the log of one action, for the tests of the log follower.

A LogServer lives as long as a test.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from agent.cluster.api.client import Client
from agent.cluster.api.container_ref import ContainerRef
from agent.cluster.logs.follower import follow
from agent.cluster.logs.source import LogState, Timings
from agent.domain.observations import LogEnd, LogGap, LogItem, LogLost, LogPiece
from agent.settings import ClusterSettings
from agent.telemetry.metrics import Metrics
from tests.fakes.helper_log import KEY, HelperLog, accept, serve_errand

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FAST = Timings(settle=0.05, pause=0.002, longest_pause=0.01, refused=0.1, give_up=0.2, torn=0.05)
PROBING = replace(FAST, probe=0.05, longest_probe=0.1)
PATH = "/api/v1/namespaces/actions/pods/pod-1"
TARGET = ContainerRef("actions", "pod-1", "helper")


class Source:
    """The state of an action's log, which the test sets. In the agent, the state comes from the pod watch."""

    def __init__(self, state: LogState = LogState.OPEN) -> None:
        self.state = state
        self.changed = asyncio.Event()

    def enter(self, state: LogState) -> None:
        self.state = state
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def wait_while(self, state: LogState) -> None:
        while self.state is state:
            await self.changed.wait()


class LogServer:
    """A fake API server with the log of one pod.

    Each handler in `script` answers one request for the stdout of container `helper`. Each handler in `execs` answers
    one exec. When a list is empty, the server answers itself. It serves the whole stdout and ends the log, or it lets
    an exec read the log file as the program `log` does. `errands` lists the arguments of all execs: the position in the
    log, and "once" or "follow".
    """

    def __init__(self) -> None:
        self.log = HelperLog()
        self.source = Source()
        self.script: list[Handler] = []
        self.execs: list[Handler] = []
        self.queries: list[dict[str, str]] = []
        self.errands: list[tuple[int, str]] = []
        self.metrics = Metrics()
        self.client: Client

    @property
    def follows(self) -> int:
        return sum("follow" in query for query in self.queries)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == f"{PATH}/exec":
            position, how = request.query.getall("command")[-2:]
            self.errands.append((int(position), how))
            return await (self.execs.pop(0) if self.execs else self.errand)(request)
        assert request.path == f"{PATH}/log"
        self.queries.append(dict(request.query))
        if self.script:
            return await self.script.pop(0)(request)
        return await self.whole(request)

    async def whole(self, request: web.Request) -> web.StreamResponse:
        if not self.log.ended:
            self.log.end()
        return web.Response(body=self.log.body())

    async def errand(self, request: web.Request) -> web.StreamResponse:
        return await serve_errand(request, self.log)

    def cut_errand(self, until: int) -> Handler:
        """Return a handler of an exec. It sends the log file up to byte `until`, then breaks the connection."""

        async def answer(request: web.Request) -> web.StreamResponse:
            socket = await accept(request)
            position = int(request.query.getall("command")[-2])
            await socket.send_bytes(b"\x01" + self.log.blocks(position, until=until))
            assert request.transport
            request.transport.close()
            return socket

        return answer

    def status(self, code: int, message: str = "", **headers: str) -> Handler:
        async def answer(_: web.Request) -> web.StreamResponse:
            return web.json_response({"kind": "Status", "code": code, "message": message}, status=code, headers=headers)

        return answer

    def part(self, start: int = 0, end: int | None = None) -> Handler:
        """Return a handler that serves bytes `start` to `end` of the helper's stdout, then ends the response."""

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.Response(body=self.log.body()[start:end])

        return answer

    def then_silent(self, start: int = 0, end: int | None = None, *, cut: bool = False) -> Handler:
        """Return a handler that serves bytes `start` to `end` of the helper's stdout.

        Afterwards it sends nothing more, or breaks the connection if `cut` is true.
        """

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(self.log.body()[start:end])
            if cut:
                assert request.transport
                request.transport.abort()
            await asyncio.Event().wait()
            return response

        return answer

    async def read(self, position: int = 0, timings: Timings = FAST) -> list[LogItem]:
        items = follow(self.client, TARGET, position, self.source, KEY, timings)
        async with asyncio.timeout(20), aclosing(items):
            return [item async for item in items]


def payload(items: list[LogItem]) -> bytes:
    """Return the text of all log pieces. Each piece must begin at the position where the item before it ends."""
    position = next((item.offset for item in items if isinstance(item, LogPiece | LogGap)), 0)
    for item in items:
        if isinstance(item, LogPiece):
            assert item.offset == position
            position += len(item.data)
        elif isinstance(item, LogGap):
            assert item.offset == position
            position += item.size
    return b"".join(item.data for item in items if isinstance(item, LogPiece))


def others(items: list[LogItem]) -> list[LogGap | LogEnd | LogLost]:
    return [item for item in items if not isinstance(item, LogPiece)]


@asynccontextmanager
async def serving() -> AsyncIterator[LogServer]:
    api = LogServer()
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
