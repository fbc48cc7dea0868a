"""The scheduler for one machine as a whole: store, book, dispatcher and server, opened and closed together."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.local_scheduler import grpc_service
from agent.local_scheduler.dispatcher import Dispatcher, Rules
from agent.local_scheduler.registry import Book
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
    book: Book
    store: Store
    address: str


@contextlib.asynccontextmanager
async def open_scheduler(
    address: str, folder: Path, access: grpc_service.Access, rules: Rules | None = None, *, durable: bool = True
) -> AsyncIterator[Scheduler]:
    """Serve a scheduler over a folder; with `durable` False its memory ends with it.

    Raises:
        StoreFailed: the folder cannot be used.
        CannotListen: the address cannot be used.
    """
    store = Store(folder, durable=durable)
    book = Book(store)
    await book.open()
    dispatcher = Dispatcher(book, rules or Rules())
    try:
        wire, port = await grpc_service.start(dispatcher, address, access)
        try:
            dispatcher.start()
            host = address.rpartition(":")[0]
            yield Scheduler(dispatcher, book, store, f"{host}:{port}")
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
    rules: Rules | None = None,
    listening: Callable[[str], None] | None = None,
) -> None:
    """Serve until `stop` is set; `listening` is told the address. The folder holds all it knows, over restarts.

    Raises:
        StoreFailed: the folder cannot be used, or no longer.
        CannotListen: the address cannot be used.
    """
    async with open_scheduler(address, folder, access, rules) as scheduler:
        log.info("scheduler listens", address=scheduler.address, folder=str(folder))
        if listening is not None:
            listening(scheduler.address)
        await scheduler.store.until(stop)
