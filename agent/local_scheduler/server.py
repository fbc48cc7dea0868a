"""Open and close the local scheduler: its store, registry, dispatcher and gRPC server.

`run` opens a scheduler for a single pipeline. `sealci-agent scheduler` serves a scheduler until a signal stops the
command.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.local_scheduler import grpc_service
from agent.local_scheduler.dispatcher import Dispatcher
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.registry import PipelineRegistry
from agent.local_scheduler.storage.store import Store

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from agent.local_scheduler.local_service import Access

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Scheduler:
    """An open scheduler. `address` is host:port with the port on which the server listens."""

    dispatcher: Dispatcher
    registry: PipelineRegistry
    store: Store
    address: str


@contextlib.asynccontextmanager
async def open_scheduler(
    address: str, folder: Path, access: Access, options: SchedulerOptions | None = None, *, durable: bool = True
) -> AsyncIterator[Scheduler]:
    """Serve a scheduler that keeps its data in `folder`. If `durable` is False, its tables are only in memory.

    Raises:
        StoreFailed: the folder cannot be used.
        CannotListen: the server cannot listen on the address.
    """
    store = Store(folder, durable=durable)
    registry = PipelineRegistry(store)
    try:
        # `open` is inside the `try` block, because Ctrl-C may interrupt it. `store.close` then waits for the thread
        # that still creates files.
        await registry.open()
        dispatcher = Dispatcher(registry, options or SchedulerOptions())
        server, port = await grpc_service.start(dispatcher, address, access)
        try:
            dispatcher.start()
            host = address.rpartition(":")[0]
            yield Scheduler(dispatcher, registry, store, f"{host}:{port}")
        finally:
            await grpc_service.stop(server, dispatcher)
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
    """Serve a scheduler until `stop` is set. `listening` is called with the address of the server.

    Raises:
        StoreFailed: the folder cannot be used, or a write failed.
        CannotListen: the server cannot listen on the address.
    """
    async with open_scheduler(address, folder, access, options) as scheduler:
        log.info("scheduler listens", address=scheduler.address, folder=str(folder))
        if listening is not None:
            listening(scheduler.address)
        await scheduler.store.wait_until(stop)
