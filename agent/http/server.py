"""The HTTP port of the agent: status page (`/`), metrics (`/metrics`) and probes (`/livez`, `/readyz`).

The server lives as long as the agent. The liveness probe checks only the event loop of the agent. It does not check the
connections to the scheduler and the cluster, because a lost connection is no reason to restart an agent with sessions.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast

from aiohttp import web

from agent.http.connections import Connections, listen

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from agent.settings import HttpSettings
    from agent.telemetry.metrics import Metrics

# Seconds between two heartbeats of the event loop.
BEAT_SECONDS = 1.0
# Seconds without a heartbeat until the liveness probe fails.
STALLED_SECONDS = 15.0
# The page shows names and messages that other people wrote. A browser must run no script and load no other file for the
# page.
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Http:
    """Serves the HTTP port.

    `not_ready` returns why the agent accepts no action, "" if it accepts actions. `page` returns the status page.
    """

    def __init__(
        self, settings: HttpSettings, metrics: Metrics, not_ready: Callable[[], str], page: Callable[[], str]
    ) -> None:
        self.settings = settings
        self.metrics = metrics
        self.not_ready = not_ready
        self.page = page
        self.beat = time.monotonic()
        self.port = 0
        self.connections: Connections | None = None

    async def run(self, started: asyncio.Event) -> None:
        """Listen until cancelled. Sets `started` when the port is open.

        Raises:
            OSError: the port cannot be opened.
        """
        application = web.Application(middlewares=[self.count_errors])
        application.router.add_get("/metrics", self.on_metrics)
        application.router.add_get("/livez", self.on_livez)
        application.router.add_get("/readyz", self.on_readyz)
        if self.settings.status_page:
            application.router.add_get("/", self.on_page)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        listeners: list[socket.socket] = []
        try:
            listeners = await listen(self.settings.host, self.settings.port)
            self.port = listeners[0].getsockname()[1]
            # aiohttp limits neither the number of connections nor the time until the head of a request is complete.
            self.connections = Connections(cast("Callable[[], asyncio.Protocol]", runner.server))
            async with asyncio.TaskGroup() as group:
                for listener in listeners:
                    group.create_task(self.connections.accept(listener), name="accept http")
                started.set()
                await self.keep_beat()
        finally:
            for listener in listeners:
                listener.close()
            await runner.cleanup()

    async def keep_beat(self) -> None:
        """Record a heartbeat of the event loop every `BEAT_SECONDS`, until cancelled.

        After each heartbeat, close the connections whose next request is overdue.
        """
        while True:
            self.beat = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)
            self.metrics.loop_lag.observe(max(0.0, time.monotonic() - self.beat - BEAT_SECONDS))
            if self.connections is not None:
                self.connections.close_overdue()

    @web.middleware
    async def count_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Count an unexpected error of a handler. aiohttp then logs the error and answers with 500."""
        if self.connections is not None:
            self.connections.saw_request(request.transport)
        try:
            return await handler(request)
        except web.HTTPException:
            raise
        except Exception:
            self.metrics.internal_errors.labels("http").inc()
            raise

    async def on_page(self, _: web.Request) -> web.Response:
        """Return the status page."""
        return web.Response(text=self.page(), content_type="text/html", charset="utf-8", headers=PAGE_HEADERS)

    async def on_metrics(self, _: web.Request) -> web.Response:
        """Return the metrics in the text format of Prometheus."""
        self.metrics.tasks.set(len(asyncio.all_tasks()))
        return web.Response(body=self.metrics.text(), content_type="text/plain", charset="utf-8")

    async def on_livez(self, _: web.Request) -> web.Response:
        """Return 200 if the event loop runs, 503 if it has stalled."""
        behind = time.monotonic() - self.beat
        if behind > STALLED_SECONDS:
            return web.Response(status=503, text=f"the event loop has not turned for {behind:.0f} s\n")
        return web.Response(text="ok\n")

    async def on_readyz(self, _: web.Request) -> web.Response:
        """Return 200 if the agent accepts actions, else 503 and why not."""
        why = self.not_ready()
        return web.Response(status=503 if why else 200, text=f"{why or 'ok'}\n")
