"""The scheduler for one machine as a whole: store, registry, dispatcher and server, opened and closed together."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.local_scheduler import grpc_service
from agent.local_scheduler.dispatcher import Dispatcher, SchedulerOptions
from agent.local_scheduler.registry import PipelineRegistry
from agent.local_scheduler.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.local_scheduler.grpc_service import Access

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Scheduler:
    """One that is open. `address` is host:port with the port that was found."""

    dispatcher: Dispatcher
    registry: PipelineRegistry
    store: Store
    address: str


@contextlib.asynccontextmanager
async def open_scheduler(
    address: str,
    folder: Path,
    access: grpc_service.Access,
    options: SchedulerOptions | None = None,
    *,
    durable: bool = True,
) -> AsyncIterator[Scheduler]:
    """Serve a scheduler over a folder; with `durable` False its memory ends with it.

    Raises:
        StoreFailed: the folder cannot be used.
        CannotListen: the address cannot be used.
    """
    store = Store(folder, durable=durable)
    registry = PipelineRegistry(store)
    await registry.open()
    dispatcher = Dispatcher(registry, options or SchedulerOptions())
    try:
        wire, port = await grpc_service.start(dispatcher, address, access)
        try:
            dispatcher.start()
            host = address.rpartition(":")[0]
            yield Scheduler(dispatcher, registry, store, f"{host}:{port}")
        finally:
            await grpc_service.stop(wire, dispatcher)
    finally:
        await store.close()


async def serve_scheduler(
    address: str,
    folder: Path,
    access: Access,
    stop: asyncio.Event,
    *,
    options: SchedulerOptions | None = None,
    listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until `stop` is set; `listening` is told the address. The folder holds all it knows, over restarts.

    Raises:
        StoreFailed: the folder cannot be used, or no longer.
        CannotListen: the address cannot be used.
    """
    async with open_scheduler(address, folder, access, options) as scheduler:
        log.info("scheduler listens", address=scheduler.address, folder=str(folder))
        if listening is not None:
            listening(scheduler.address)
        await scheduler.store.wait_until(stop)
