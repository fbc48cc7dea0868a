"""A scripted API server with the log of one container, for the tests of the log follower.

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
from agent.cluster.logs.follower import ContainerState, Timings, follow
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogLost, LogPiece
from agent.settings import ClusterSettings
from agent.telemetry.metrics import Metrics
from tests.fakes.kubelet_log import KubeletLog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FAST = Timings(
    settle=0.05,
    pause=0.002,
    longest_pause=0.01,
    refused=0.1,
    give_up=0.2,
)
PROBING = replace(FAST, probe=0.05, longest_probe=0.1)
PATH = "/api/v1/namespaces/actions/pods/pod-1/log"
TARGET = ContainerRef("actions", "pod-1", "action")


class Container:
    """The state of a container, as the pod watch reports it to the log follower. The test sets the state."""

    def __init__(self, state: ContainerState = ContainerState.RUNNING) -> None:
        self.state = state
        self.log_ended = False
        self.end_seen = False
        self.changed = asyncio.Event()

    def enter(self, state: ContainerState) -> None:
        self.state = state
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def wait_while(self, state: ContainerState) -> None:
        while self.state is state:
            await self.changed.wait()
        self.end_seen = self.state is ContainerState.TERMINATED


class LogServer:
    """A fake API server with a log. Each handler in `script` answers one request.

    Later requests get the whole log, and the container ends.
    """

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
        """Return a handler that serves the log up to byte `position` of the whole log, and ends the response."""

        async def answer(request: web.Request) -> web.StreamResponse:
            body = self.body(request)
            return web.Response(body=body[: max(0, position - len(self.log.body()) + len(body))])

        return answer

    def then_silent(self, *, cut: bool = False) -> Handler:
        """Return a handler that serves the log and keeps the response open or, if `cut`, breaks the connection."""

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
        self, cursor: Cursor | None = None, timings: Timings = FAST, node_limit: int = 1 << 20
    ) -> list[LogPiece | LogGap | LogLost]:
        items = follow(self.client, TARGET, cursor or Cursor(), self.container, timings, node_limit)
        async with aclosing(items):
            return [item async for item in items]


def payload(items: list[LogPiece | LogGap | LogLost]) -> bytes:
    return b"".join(item.data for item in items if isinstance(item, LogPiece))


def others(items: list[LogPiece | LogGap | LogLost]) -> list[LogGap | LogLost]:
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
