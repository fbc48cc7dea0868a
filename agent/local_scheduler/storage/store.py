"""The store of the local scheduler: one folder with SQLite tables and log files, written by one thread.

Changes are written in the order of `save`, many in one transaction. Effects of a change, such as an acknowledgement,
happen only after the change is on the disk. Log bytes are written first. The transaction after them then stores their
offset. After a crash, a log file is possibly longer than the stored length, so `open` cuts the file to this length.
If `durable` is False, the tables are in memory. The command `run` passes False, because it keeps only logs and
artifacts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog

from agent.domain.errors import AgentError
from agent.local_scheduler.storage import log_files, schema
from agent.local_scheduler.storage.changes import Change, LoadedPipeline, StoredPipeline
from agent.local_scheduler.storage.uploads import ActionFolder
from agent.pipeline.events import LogText

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agent.pipeline.events import PipelineEvent
    from agent.pipeline.wire import local_pb2 as wire

log = structlog.get_logger()

# Maximum number of changes that wait to be written. At this number, `wait_for_room` blocks its callers.
MAX_WAITING = 512
# Maximum number of changes in one transaction.
BATCH = 256
# Maximum number of ended pipelines whose rows are kept.
KEPT_PIPELINES = 100
# Seconds to wait for a database that another process has locked.
LOCK_TIMEOUT = 0.2
DATABASE = "scheduler.sqlite3"

Answer = TypeVar("Answer")


class StoreFailed(AgentError):
    """The folder cannot be read or written. The scheduler cannot continue."""


class Store:
    """The only reader and writer of a scheduler's folder. It lives as long as the scheduler.

    The future `failed` gets an exception when a write fails. After a failed write, no further change is stored.
    """

    def __init__(self, root: Path, *, durable: bool) -> None:
        self.root = root
        self.durable = durable
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connection: sqlite3.Connection
        self.waiting: deque[tuple[Change, Callable[[], None]]] = deque()
        self.wake = asyncio.Event()
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.closing = False
        self.thread = ThreadPoolExecutor(1, "store")
        self.writer: asyncio.Task[None] | None = None

    def folder(self, pipeline: str) -> Path:
        """Return the folder of a pipeline's logs and artifacts. If `durable` is False, it is the folder of the store
        itself.
        """
        return self.root / pipeline if self.durable else self.root

    async def run_on_thread(self, work: Callable[[], Answer]) -> Answer:
        """Run a function on the store's thread, after the functions that were passed earlier. Return its result."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    # ---- methods that open and close the store

    async def open(self) -> list[LoadedPipeline]:
        """Open the folder and return its pipelines, oldest first.

        Raises:
            StoreFailed: the folder cannot be used, or another scheduler uses it.
        """
        try:
            loaded = await self.run_on_thread(self.read_all)
        except (OSError, sqlite3.Error, ValueError) as error:
            self.thread.shutdown(wait=False)
            busy = "locked" in str(error)
            why = "another scheduler uses it" if busy else str(error)
            raise StoreFailed(f"the folder {self.root} cannot be used: {why}") from error
        self.writer = asyncio.create_task(self.write_all(), name="store-writer")
        return loaded

    def read_all(self) -> list[LoadedPipeline]:
        """Connect to the database and read every pipeline."""
        self.root.mkdir(parents=True, exist_ok=True)
        where = ":memory:"
        if self.durable:
            path = self.root / DATABASE
            # SQLite would create the file with the process's umask, and other users could read it.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            where = str(path)
        self.connection = sqlite3.connect(where, timeout=LOCK_TIMEOUT, isolation_level=None)
        self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        schema.prepare(self.connection)
        return [self.load(each) for each in schema.load_pipelines(self.connection)]

    def load(self, pipeline: StoredPipeline) -> LoadedPipeline:
        """Read one pipeline, and cut its log files to the stored lengths."""
        actions = schema.load_states(self.connection, pipeline.id)
        for each in actions:
            log_files.repair(self.folder(pipeline.id), each)
        position = schema.last_position(self.connection, pipeline.id)
        return LoadedPipeline(pipeline, actions, position, schema.load_files(self.connection, pipeline.id))

    async def close(self) -> None:
        """Write the waiting changes and close the database. Safe to repeat."""
        self.closing = True
        self.wake.set()
        if self.writer is not None:
            await self.writer
            self.writer = None
            await self.run_on_thread(self.connection.close)
        self.thread.shutdown()

    # ---- methods that save changes

    @property
    def unusable(self) -> bool:
        """Whether `save` would raise `StoreFailed`."""
        return self.closing or self.failed.done()

    async def wait_for_room(self) -> None:
        """Wait until fewer than `MAX_WAITING` changes wait to be written.

        Callers must call this method before they compute a change. `save` never waits, so that changes keep their
        order.
        """
        while not self.has_room.is_set():
            await self.has_room.wait()

    def save(self, change: Change, then: Callable[[], None] = lambda: None) -> None:
        """Queue a change. `then` is called after the change is on the disk, and never if the write fails.

        Raises:
            StoreFailed: an earlier change could not be written.
        """
        if self.unusable:
            raise StoreFailed("nothing more can be stored")
        self.waiting.append((change, then))
        if len(self.waiting) >= MAX_WAITING:
            self.has_room.clear()
        self.wake.set()

    async def save_and_wait(self, change: Change) -> None:
        """Save a change and return after it is on the disk.

        Raises:
            StoreFailed: the change could not be written.
        """
        stored = asyncio.Event()
        self.save(change, stored.set)
        await self.wait_until(stored)

    async def wait_until(self, event: asyncio.Event) -> None:
        """Wait until an event is set or the store fails.

        Raises:
            StoreFailed: the store failed before the event was set.
        """
        waiting = asyncio.create_task(event.wait(), name="stored")
        try:
            await asyncio.wait((waiting, self.failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not event.is_set():
            raise StoreFailed(str(self.failed.exception()))

    async def write_all(self) -> None:
        """Write the waiting changes in batches until the store is closed. This is the body of the writer task."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.waiting:
                batch = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
                if len(self.waiting) < MAX_WAITING:
                    self.has_room.set()
                changes = [change for change, _ in batch]
                try:
                    await self.run_on_thread(partial(self.write, changes))
                except Exception as error:  # noqa: BLE001 - a writer that died in silence would stop every pipeline
                    self.has_room.set()
                    self.failed.set_exception(StoreFailed(f"the folder {self.root} cannot be written: {error}"))
                    return
                for _, then in batch:
                    then()
            if self.closing:
                return

    def write(self, changes: Sequence[Change]) -> None:
        """Write the log bytes of changes, and then their rows in one transaction."""
        texts: list[PipelineEvent] = []
        for change in changes:
            if change.starts_logs:
                # The bytes that are collected so far belong to the old log file, which `start_logs` renames.
                log_files.append(self.folder, texts, durable=self.durable)
                texts = []
                self.start_logs(change)
            texts += [event for event in change.events if isinstance(event.body, LogText)]
        log_files.append(self.folder, texts, durable=self.durable)
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            for change in changes:
                self.apply(change)
            self.connection.execute("COMMIT")
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                self.connection.execute("ROLLBACK")
            raise

    def start_logs(self, change: Change) -> None:
        """Create the empty log files of a new pipeline or a new attempt."""
        if change.pipeline is not None:
            log_files.clear(self.folder(change.pipeline.id), [each.name for each in change.states])
        if (each := change.new_attempt) is not None:
            log_files.set_aside(self.folder(each.pipeline), each.name, each.attempt - 1)
            self.remove_files(each.pipeline, each.name)

    def remove_files(self, pipeline: str, action: str) -> None:
        """Delete the artifacts of a lost attempt. Otherwise they would look like artifacts of the next attempt."""
        files = schema.load_files(self.connection, pipeline).get(action, [])
        if files:
            with ActionFolder(self.folder(pipeline), action) as folder:
                for file in files:
                    try:
                        folder.remove(file.path)
                    except OSError as error:
                        log.warning(
                            "an artifact of a lost attempt cannot be deleted",
                            action=action,
                            path=file.path,
                            why=str(error),
                        )

    def apply(self, change: Change) -> None:
        """Write the rows of one change into the open transaction."""
        if (pipeline := change.pipeline) is not None:
            schema.save_pipeline(self.connection, pipeline)
            if not pipeline.ended:
                schema.drop_oldest(self.connection, KEPT_PIPELINES)
        schema.save_states(self.connection, change.states)
        schema.save_events(self.connection, change.events)
        if (each := change.new_attempt) is not None:
            schema.delete_files(self.connection, each.pipeline, each.name)
        if change.files is not None:
            schema.replace_files(self.connection, change.files)

    # ---- methods that read events

    async def events(self, pipeline: str, after: int, limit: int = 64) -> list[wire.PipelineEvent]:
        """Return the stored events after position `after`, at most `limit`, with the bytes of the logs."""
        return await self.run_on_thread(lambda: self.read_events(pipeline, after, limit))

    def read_events(self, pipeline: str, after: int, limit: int) -> list[wire.PipelineEvent]:
        """Read events from the table, and their log bytes from the log files."""
        found = schema.load_events(self.connection, pipeline, after, limit)
        newest = schema.newest_attempts(self.connection, pipeline)
        log_files.fill(self.folder(pipeline), found, newest)
        return found
