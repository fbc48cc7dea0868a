"""Faults of an API server by name, for FakeApi: wrong answers, outages, and watches with missing or doubled events.

`put` injects a fault into the next requests of a verb. All other requests succeed. The answers use the texts of a real
API server, because the agent distinguishes some failures by text. An outage aborts every connection and closes the
port. Nothing is random. Faults lives as long as a test.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from tests.fakes.answers import HANG, Scripted, status_text

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from tests.fakes.answers import Handler, Play
    from tests.fakes.api import FakeApi, WatchEvent

# Seconds between two bytes of a slow answer, and between two checks whether the agent has noticed a fault.
PACE = 0.02
EXPIRED = '{"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old resource version"}}\n'
CONFLICT = "Operation cannot be fulfilled on it: the object has been modified; please apply your changes to the"
WEBHOOK = 'admission webhook "rules.example.org" denied the request: the image has no owner'
# The answer for each fault that is only a wrong answer: status, message and headers, by the name of the fault.
ANSWERS: dict[str, tuple[int, str, dict[str, str]]] = {
    "401": (401, "Unauthorized", {}),
    "403 right": (403, 'is forbidden: User "agent" cannot do this in the namespace "ci"', {}),
    "403 quota": (403, "is forbidden: exceeded quota: team, requested: pods=1, used: pods=9, limited: pods=9", {}),
    "404": (404, 'namespaces "ci" not found', {}),
    "409": (409, f"{CONFLICT} latest version and try again", {}),
    "410": (410, "too old resource version: 1 (7)", {}),
    "422": (422, WEBHOOK, {}),
    "429": (429, "too many requests, please try again later", {"Retry-After": "1"}),
    "500": (500, "Internal error occurred: etcdserver: request timed out", {}),
    "503": (503, "apiserver is shutting down", {}),
    "504": (504, "Timeout: request did not complete within the allotted duration", {}),
}


class Faults:
    """Injects faults into the answers of one FakeApi.

    An outage ends when `felt()` is true, which means that the agent has noticed the outage. `other` is a certificate
    that the agent does not trust.
    """

    def __init__(self, api: FakeApi, felt: Callable[[], bool]) -> None:
        self.api = api
        self.felt = felt
        self.other: ssl.SSLContext | None = None
        self.hits = 0
        self.outages: set[asyncio.Task[None]] = set()

    def put(self, name: str, verb: str, part: str, times: int) -> None:
        """Inject the fault `name` into the next `times` requests of a verb on paths that contain `part`."""
        if order := ORDERS.get(name):
            self.api.order = order
            return
        if name in ANSWERS:
            status, message, headers = ANSWERS[name]
            play = self.answer(web.Response, status=status, text=status_text(status, message), headers=headers)
        else:
            play = {
                "refused": self.refused,
                "TLS": self.untrusted,
                "applied": self.applied,
                "half": self.half,
                "slow": self.slow,
                "silent": self.silent,
                "410 event": self.answer(web.Response, text=EXPIRED),
            }[name]
        self.api.scripts.append(Scripted(verb, part, HANG, "", {}, times, play=self.counted(play)))

    def lift(self) -> None:
        """Remove all faults, so that the server answers as usual."""
        self.api.scripts.clear()

    def counted(self, play: Play) -> Play:
        """Return the fault `play`, changed so that `hits` counts the requests that meet the fault."""

        def counting(request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]:
            self.hits += 1
            return play(request, handler)

        return counting

    def answer(self, make: Callable[..., web.Response], **answer: object) -> Play:
        """Return a fault that answers each request with the response of `make(**answer)`."""

        async def play(request: web.Request, handler: Handler) -> web.StreamResponse:
            return make(**answer)

        return play

    # ---- faults of the connection

    async def refused(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse all connections, beginning with this request, until the agent has noticed the outage."""
        return await self.outage(None)

    async def untrusted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Serve with a certificate that the agent does not trust, until the agent has noticed the fault."""
        return await self.outage(self.other)

    async def outage(self, certificate: ssl.SSLContext | None) -> web.StreamResponse:
        """Abort every connection. Listen again on the same port when the agent has noticed the outage.

        If there is a `certificate`, listen with it during the outage. Otherwise refuse connections during the outage.
        """
        api = self.api
        port = api.runner.addresses[0][1]
        await shut(api.site)
        if certificate is not None:
            api.site = web.TCPSite(api.runner, "127.0.0.1", port, ssl_context=certificate)
            await api.site.start()
        back = asyncio.create_task(self.come_back(port, certificate is not None), name="end of the outage")
        self.outages.add(back)
        for connection in api.runner.server.connections if api.runner.server else ():
            if connection.transport is not None:
                connection.transport.abort()
        return web.Response(status=500)

    async def come_back(self, port: int, stands: bool) -> None:
        """Wait until the agent has noticed the outage. Then listen on the port again, with the usual certificate.

        `stands` is true if the server listens with another certificate during the outage.
        """
        while not self.felt() and not self.api.stopping:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(PACE)
        if stands:
            await shut(self.api.site)
        self.api.site = web.TCPSite(self.api.runner, "127.0.0.1", port, ssl_context=self.api.tls)
        await self.api.site.start()

    async def close(self) -> None:
        """Wait until every outage has ended."""
        await asyncio.gather(*self.outages)

    # ---- faults of the answer

    async def applied(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Apply the request as usual, and never answer it."""
        if request.query.get("watch") != "true" and not request.path.endswith(("/exec", "/log")):
            await handler(request)
        await self.gone(request)
        return web.Response()

    async def gone(self, request: web.Request) -> None:
        """Wait until the client has closed the connection or the test ends."""
        while request.transport is not None and not request.transport.is_closing() and not self.api.stopping:  # noqa: ASYNC110 - a closing transport has no event
            await asyncio.sleep(PACE)

    async def body(self, request: web.Request, handler: Handler) -> bytes:
        """Apply the request as usual. Return the body of its answer."""
        if request.query.get("watch") == "true":
            return json.dumps({"type": "MODIFIED", "object": {"kind": "Pod"}}).encode()
        if request.path.endswith("/log"):
            return self.api.log_of(request.path.split("/")[-2], request.query["container"]) or b""
        answer = await handler(request)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        return answer.body

    async def half(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Apply the request as usual, and close the connection in the middle of the answer."""
        if request.path.endswith("/exec"):
            request["fault"] = "half"
            return await handler(request)
        body = await self.body(request, handler)
        response = web.StreamResponse(headers={"Content-Length": str(len(body) + 100)})
        with suppress(ConnectionError):
            await response.prepare(request)
            await response.write(body[: len(body) // 2])
        if request.transport is not None:
            request.transport.close()
        return response

    async def slow(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Apply the request as usual, and answer so slowly, byte by byte, that the agent's time limits are exceeded."""
        if request.path.endswith("/exec"):
            request["fault"] = "slow"
            return await handler(request)
        body = await self.body(request, handler)
        is_log = request.path.endswith("/log")
        response = web.StreamResponse()
        with suppress(ConnectionError):
            await response.prepare(request)
            for at in range(40 if is_log else 10_000):
                await response.write(body[at : at + 1] if at < len(body) - 1 else b" " * (not is_log))
                await asyncio.sleep(PACE)
                if request.transport is None or request.transport.is_closing() or self.api.stopping:
                    break
        if request.transport is not None:
            request.transport.close()
        return response

    async def silent(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Send the headers of an answer and never a body."""
        response = web.StreamResponse()
        with suppress(ConnectionError):
            await response.prepare(request)
            await self.gone(request)
        return response


async def shut(site: web.BaseSite) -> None:
    """Stop listening, after the event loop has accepted the connections that are arriving now.

    If a server is closed while asyncio accepts a connection, asyncio loses this connection, which then stays open and
    silent.
    """
    server = site._server  # noqa: SLF001 - aiohttp has no public way
    assert isinstance(server, asyncio.Server)
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(2):
        await asyncio.sleep(0)
    await site.stop()


# ---- the order of events in a watch


def doubled(events: list[WatchEvent]) -> list[WatchEvent]:
    """Return the events of a watch, each event twice."""
    return [each for event in events for each in (event, event)]


def backwards(events: list[WatchEvent]) -> list[WatchEvent]:
    """Return the events of a watch in reverse order, and at the end the oldest event a second time."""
    return [*reversed(events), *events[:1]]


def with_gaps(events: list[WatchEvent]) -> list[WatchEvent]:
    """Return the events of a watch without the end of the pod's commands and without the pod's deletion."""
    return [each for each in events if each[1]["type"] != "DELETED" and "exitCode" not in json.dumps(each[1])]


ORDERS: dict[str, Callable[[list[WatchEvent]], list[WatchEvent]]] = {
    "doubled": doubled,
    "reordered": backwards,
    "missing": with_gaps,
}
