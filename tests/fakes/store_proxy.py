"""An HTTP proxy in front of a real object store. It fails requests, or holds them, as a test has set.

A StoreProxy lives as long as its `async with`. Programs and agents use its `url` as the endpoint of the store. The
proxy keeps the header Host, so the store finds the signatures right.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Self

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    # Gets the method and the path, with the query, of a request. Returns its fault, None for none.
    Rule = Callable[[str, str], Awaitable[int | str | None]]

# Seconds until a wait for a request fails.
DEADLINE = 15.0
MAX_BODY = 1 << 27
NOT_FORWARDED = {"connection", "content-length", "transfer-encoding"}


async def no_fault(_method: str, _path: str) -> None:
    """Let every request pass."""


class StoreProxy:
    """Forwards requests to the store at `target`. `rule` decides on the fault of each request.

    A number is the status of an answer that the store did not give. "cut" ends the connection in the middle of the
    request's body, or of the answer's body. "half" holds the second half of the answer until `released` is set. "flip"
    changes a bit of the body on its way. `after` is called when the store has answered. `requests` lists all requests.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.rule: Rule = no_fault
        self.after: Rule = no_fault
        self.released = asyncio.Event()
        self.requests: list[str] = []

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.server = TestServer(app)
        # A request that a test holds does not delay the end.
        await self.server.start_server(shutdown_timeout=0.1)
        self.http = aiohttp.ClientSession(auto_decompress=False)
        self.url = str(self.server.make_url("")).rstrip("/")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        await self.server.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.raw_path}")
        fault = await self.rule(request.method, request.raw_path)
        if fault == "cut" and request.content_length:
            await request.content.readexactly(request.content_length // 2)
            return hang_up(request)
        body = await request.read()
        if isinstance(fault, int):
            text = f"<Error><Code>Scripted</Code><Message>status {fault}</Message></Error>"
            return web.Response(status=fault, text=text)
        if fault == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        status, headers, data = await self.forward(request, body)
        if fault == "flip" and request.method == "GET":
            data = bytes([data[0] ^ 1]) + data[1:]
        await self.after(request.method, request.raw_path)
        if fault not in ("cut", "half"):
            return web.Response(status=status, headers=headers, body=data)
        answer = web.StreamResponse(status=status, headers=headers | {"Content-Length": str(len(data))})
        await answer.prepare(request)
        await answer.write(data[: len(data) // 2])
        if fault == "cut":
            return hang_up(request)
        await self.released.wait()
        await answer.write(data[len(data) // 2 :])
        return answer

    async def forward(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send a request to the store. Return the status, the headers and the body of the answer."""
        url = URL(f"{self.target}{request.raw_path}", encoded=True)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in NOT_FORWARDED}
        async with self.http.request(request.method, url, headers=headers, data=io.BytesIO(body)) as answer:
            data = await answer.read()
            fields = {name: value for name, value in answer.headers.items() if name.lower() not in NOT_FORWARDED}
            return answer.status, fields, data


def hang_up(request: web.Request) -> web.StreamResponse:
    """End the connection of a request without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


class Hold:
    """A rule that holds the first request that `matches`, until the test sets `open`."""

    def __init__(self, matches: Callable[[str, str], bool]) -> None:
        self.matches = matches
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def until_reached(self) -> None:
        """Wait until a request is held."""
        async with asyncio.timeout(DEADLINE):
            await self.reached.wait()

    async def __call__(self, method: str, path: str) -> None:
        """Hold the request if it is the first one that matches."""
        if not self.reached.is_set() and self.matches(method, path):
            self.reached.set()
            await self.open.wait()
