"""The port for probes, metrics and the status page: an error of a handler is answered and counted."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp

from agent.http.server import Http
from agent.settings import HttpSettings
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@asynccontextmanager
async def serving(page: Callable[[], str]) -> AsyncIterator[tuple[aiohttp.ClientSession, Metrics]]:
    metrics, started = Metrics(), asyncio.Event()
    http = Http(HttpSettings(host="127.0.0.1", port=0), metrics, lambda: "", page)
    task = asyncio.create_task(http.run(started), name="http")
    try:
        await started.wait()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{http.port}") as session:
            yield session, metrics
    finally:
        task.cancel()
        await asyncio.wait({task})


def errors(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("sealci_agent_internal_errors_total", {"where": "http"})


async def test_an_error_of_a_handler_is_answered_with_500_and_counted() -> None:
    def broken() -> str:
        raise RuntimeError("a defect of the status page")

    async with serving(broken) as (session, metrics):
        async with session.get("/") as answer:
            assert answer.status == 500
        assert errors(metrics) == 1
        async with session.get("/livez") as answer:
            assert answer.status == 200


async def test_an_unknown_path_is_no_error_of_the_agent() -> None:
    async with serving(lambda: "page") as (session, metrics):
        async with session.get("/nothing") as answer:
            assert answer.status == 404
        assert errors(metrics) == 0
