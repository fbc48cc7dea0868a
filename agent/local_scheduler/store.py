"""What the scheduler for one machine has stored: SQLite and log files in one folder, written by one thread.

Changes are saved in the order in which they are made, many in one transaction, and what depends on a change (an
acknowledgement, an action sent out) is done only after it is on the disk. Log bytes go to their file first, at the
offset that the transaction then names, so that a crash leaves at most bytes that nobody was told of; opening cuts them.
With `durable` False the tables live in memory: for `run`, which keeps only logs and files.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from agent.domain.errors import AgentError
from agent.local_scheduler import log_files, schema
from agent.local_scheduler.uploads import ActionFolder
from agent.pipeline.events import FileStored, LogText
from agent.pipeline.wire import local_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from agent.local_scheduler.action_state import ActionState
    from agent.pipeline.events import PipelineEvent

log = structlog.get_logger()

ROOM = 512
BATCH = 256
KEPT_PIPELINES = 100
DATABASE = "scheduler.sqlite3"

Answer = TypeVar("Answer")


class StoreFailed(AgentError):
    """The folder cannot be read or written; the scheduler cannot go on."""


@dataclass(frozen=True, slots=True)
class StoredPipeline:
    """A pipeline as it was submitted."""

    id: str
    source: str
    text: str
    submitted: float
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What is saved at once. `files` replaces the list of an action's files: (pipeline, action, files)."""

    pipeline: StoredPipeline | None = None
    states: Sequence[ActionState] = ()
    events: Sequence[PipelineEvent] = ()
    files: tuple[str, str, Sequence[FileStored]] | None = None
    new_attempt: ActionState | None = None

    @property
    def begins(self) -> bool:
        """Whether logs begin with it."""
        return self.new_attempt is not None or (self.pipeline is not None and not self.pipeline.ended)


@dataclass(frozen=True, slots=True)
class LoadedPipeline:
    """A pipeline as it was found: its actions, the position of its last event, its files by action."""

    pipeline: StoredPipeline
    actions: Sequence[ActionState]
    position: int
    files: dict[str, list[FileStored]]


class Store:
    """The one writer of a scheduler's folder."""

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
        """Where a pipeline's logs and files are: `run` has only one."""
        return self.root / pipeline if self.durable else self.root

    async def run_on_thread(self, work: Callable[[], Answer]) -> Answer:
        """Do something on the store's thread, after all that was begun before."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    async def open(self) -> list[LoadedPipeline]:
        """Open the folder and return what is there, oldest first.

        Raises:
            StoreFailed: it cannot be used, or another scheduler uses it.
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
        """Connect, make the tables, read, and cut logs to what is stored."""
        self.root.mkdir(parents=True, exist_ok=True)
        where = ":memory:"
        if self.durable:
            path = self.root / DATABASE
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            where = str(path)
        self.connection = sqlite3.connect(where, timeout=0.2, isolation_level=None)
        self.connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = FULL")
        schema.prepare(self.connection)
        rows = self.connection.execute("SELECT * FROM pipelines ORDER BY submitted, rowid").fetchall()
        return [
            self.load(StoredPipeline(name, source, text, when, bool(ended))) for name, source, text, when, ended in rows
        ]

    def load(self, pipeline: StoredPipeline) -> LoadedPipeline:
        """Read one pipeline and make its logs agree with it."""
        actions = schema.load_states(self.connection, pipeline.id)
        for each in actions:
            log_files.mend(self.folder(pipeline.id), each)
        (position,) = self.connection.execute(
            "SELECT coalesce(max(position), 0) FROM events WHERE pipeline = ?", (pipeline.id,)
        ).fetchone()
        files: dict[str, list[FileStored]] = {}
        query = "SELECT action, path, size, sha256 FROM files WHERE pipeline = ?"
        for action, path, size, digest in self.connection.execute(query, (pipeline.id,)):
            files.setdefault(action, []).append(FileStored(path, size, digest))
        return LoadedPipeline(pipeline, actions, position, files)

    async def wait_for_room(self) -> None:
        """Wait until more may be saved; called before a change is computed, so that none overtakes another."""
        while not self.has_room.is_set():
            await self.has_room.wait()

    def save(self, change: Change, then: Callable[[], None] = lambda: None) -> None:
        """Save a change after all earlier ones; `then` is called when it is stored, never if it cannot be.

        Raises:
            StoreFailed: an earlier change could not be stored.
        """
        if self.unusable:
            raise StoreFailed("nothing more can be stored")
        self.waiting.append((change, then))
        if len(self.waiting) >= ROOM:
            self.has_room.clear()
        self.wake.set()

    async def save_and_wait(self, change: Change) -> None:
        """Save a change and wait until it is stored.

        Raises:
            StoreFailed: it could not be.
        """
        done = asyncio.Event()
        self.save(change, done.set)
        await self.wait_until(done)

    async def wait_until(self, event: asyncio.Event) -> None:
        """Wait for something that is set when a change is stored.

        Raises:
            StoreFailed: nothing more can be stored.
        """
        waiting = asyncio.create_task(event.wait(), name="stored")
        try:
            await asyncio.wait((waiting, self.failed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not event.is_set():
            raise StoreFailed("nothing more can be stored")

    @property
    def unusable(self) -> bool:
        """Whether nothing more can be stored."""
        return self.closing or self.failed.done()

    async def write_all(self) -> None:
        """Write what waits, as much as there is in one transaction, until closed."""
        while True:
            await self.wake.wait()
            self.wake.clear()
            while self.waiting:
                batch = [self.waiting.popleft() for _ in range(min(BATCH, len(self.waiting)))]
                if len(self.waiting) < ROOM:
                    self.has_room.set()
                try:
                    await self.run_on_thread(lambda batch=batch: self.write([change for change, _ in batch]))  # type: ignore[misc]
                except (OSError, sqlite3.Error) as error:
                    self.has_room.set()
                    self.failed.set_exception(StoreFailed(f"the folder {self.root} cannot be written: {error}"))
                    return
                for _, then in batch:
                    then()
            if self.closing:
                return

    def write(self, changes: Sequence[Change]) -> None:
        """Write log files first and the tables after them."""
        texts: list[PipelineEvent] = []
        for change in changes:
            if change.begins:
                log_files.append(self.folder, texts, durable=self.durable)
                texts = []
                self.begin(change)
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

    def begin(self, change: Change) -> None:
        """Make the empty logs of new pipelines and attempts."""
        if change.pipeline is not None:
            log_files.clear(self.folder(change.pipeline.id), [each.name for each in change.states])
        if (each := change.new_attempt) is not None:
            log_files.set_aside(self.folder(each.pipeline), each.name, each.attempt - 1)
            self.remove_files(each.pipeline, each.name)

    def remove_files(self, pipeline: str, action: str) -> None:
        """Remove the files of an attempt that is over: they are not the next one's."""
        query = "SELECT path FROM files WHERE pipeline = ? AND action = ?"
        found = self.connection.execute(query, (pipeline, action)).fetchall()
        if found:
            with ActionFolder(self.folder(pipeline), action) as place:
                for (path,) in found:
                    try:
                        place.remove(path)
                    except OSError as error:
                        log.warning("a file of a lost attempt stays", action=action, path=path, why=str(error))

    def apply(self, change: Change) -> None:
        """Write one change into the open transaction."""
        if (new := change.pipeline) is not None:
            self.connection.execute(
                "INSERT INTO pipelines VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET ended = excluded.ended",
                (new.id, new.source, new.text, new.submitted, int(new.ended)),
            )
            if not new.ended:
                self.drop_oldest()
        schema.save_states(self.connection, change.states)
        schema.save_events(self.connection, change.events)
        if (lost := change.new_attempt) is not None:
            self.connection.execute("DELETE FROM files WHERE pipeline = ? AND action = ?", (lost.pipeline, lost.name))
        if change.files is not None:
            pipeline, action, files = change.files
            self.connection.execute("DELETE FROM files WHERE pipeline = ? AND action = ?", (pipeline, action))
            self.connection.executemany(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?)",
                ((pipeline, action, each.path, each.size, each.sha256) for each in files),
            )

    def drop_oldest(self) -> None:
        """Drop the rows of pipelines that ended long ago; their logs and files stay."""
        old = self.connection.execute(
            "SELECT id FROM pipelines WHERE ended ORDER BY submitted DESC LIMIT -1 OFFSET ?", (KEPT_PIPELINES,)
        ).fetchall()
        for table, column in (
            ("events", "pipeline"),
            ("files", "pipeline"),
            ("actions", "pipeline"),
            ("pipelines", "id"),
        ):
            self.connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", old)  # noqa: S608 - fixed names

    async def events(self, pipeline: str, after: int, limit: int = 64) -> list[wire.PipelineEvent]:
        """Return the stored events after a position, bytes of logs filled in, as messages."""
        return await self.run_on_thread(lambda: self.read_events(pipeline, after, limit))

    def read_events(self, pipeline: str, after: int, limit: int) -> list[wire.PipelineEvent]:
        """Read events and the log bytes that belong to them."""
        rows = self.connection.execute(
            "SELECT event FROM events WHERE pipeline = ? AND position > ? ORDER BY position LIMIT ?",
            (pipeline, after, limit),
        ).fetchall()
        found = [wire.PipelineEvent.FromString(row) for (row,) in rows]
        newest = dict(self.connection.execute("SELECT name, attempt FROM actions WHERE pipeline = ?", (pipeline,)))
        log_files.fill(self.folder(pipeline), found, newest)
        return found

    async def close(self) -> None:
        """Write what waits and close; safe to repeat."""
        self.closing = True
        self.wake.set()
        if self.writer is not None:
            await self.writer
            self.writer = None
            await self.run_on_thread(self.connection.close)
        self.thread.shutdown()
