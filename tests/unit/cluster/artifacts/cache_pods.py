"""Pods of one action after another that restore and save caches, with the real program of container `helper`."""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts.caches import CacheConversation, CacheRequest, StoreConversation, conversation_results
from agent.cluster.artifacts.claim_caches import ClaimConversation
from agent.cluster.packaging import CLAIM_FOLDER, LOG_FOLDER
from agent.domain.actions import Cache, CacheScope
from agent.domain.events import CacheKind, CacheResult
from agent.objects.cache import CacheStore
from agent.objects.cache_entries import CacheLayout
from agent.objects.store import ObjectStore
from tests.fakes.cache_objects import CacheObjects
from tests.unit.cluster.artifacts.local_exec import LocalExec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.fakes.object_store import FakeStore

MAIN = CacheScope("main", ("main",))
PULL_REQUEST = CacheScope("pr", ("pr", "main"))
CACHE = Cache("pip-{hash:*.txt}", (".cache/pip",), ("pip-old",), "pip-")
HIT, FALLBACK, MISS, SAVED = CacheKind.HIT, CacheKind.FALLBACK, CacheKind.MISS, CacheKind.SAVED


class Pods(ABC):
    """Pods of one action after another, each with a workspace of its own, and one cache for all.

    `exec_class` runs the program. The last one is `exec`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        (folder / "key").write_text("k" * 40)
        self.claim = folder / "claim"
        self.max_bytes = 1 << 20
        self.writes, self.seconds = True, 30
        self.cut_after: int | None = None
        self.moved: list[tuple[str, int, int]] = []
        self.exec_class: type[LocalExec] = LocalExec
        self.new()

    def show(self, key: str, done: int, size: int) -> None:
        self.moved.append((key, done, size))

    @property
    @abstractmethod
    def cache(self) -> CacheLayout: ...

    @abstractmethod
    def conversation(self, stream: ExecStream, request: CacheRequest) -> CacheConversation: ...

    @property
    @abstractmethod
    def files(self) -> dict[str, bytes]:
        """Return the content of the cache by name."""

    @abstractmethod
    def write(self, name: str, data: bytes | None) -> None:
        """Change a file of the cache as another program could, or delete it."""

    @property
    def blobs(self) -> list[str]:
        return [name for name in self.files if "/blob/" in name]

    @property
    def entries(self) -> list[str]:
        return [name for name in self.files if "/key/" in name]

    def new(self, **files: str) -> None:
        """Begin the next pod. `files` is what the clone makes."""
        self.number += 1
        self.workspace = self.folder / f"w{self.number}"
        self.log = self.folder / f"log{self.number}"
        self.workspace.mkdir()
        self.log.mkdir()
        (self.log / "user").write_text("")
        (self.workspace / "req.txt").write_text("six")
        for name, text in files.items():
            (self.workspace / name.replace("_", ".")).write_text(text)

    def cached(self, text: str | None = None) -> str | None:
        """Return the content of the cached file. With `text`, write it first, as the commands do."""
        path = self.workspace / ".cache/pip/wheel"
        if text is not None:
            path.parent.mkdir(parents=True)
            path.write_text(text)
        return path.read_text() if path.exists() else None

    async def run(self, word: str, *caches: Cache, scope: CacheScope = MAIN, ok: bool = True) -> list[CacheResult]:
        limits = (self.seconds, self.max_bytes, self.writes)
        request = CacheRequest(caches or (CACHE,), scope, "debian", *limits, self.show)
        command = request.command(word, str(self.workspace))
        folders = {LOG_FOLDER: str(self.log), CLAIM_FOLDER: str(self.claim)}
        self.exec = self.exec_class([sys.executable, *(folders.get(each, each) for each in command[1:])])
        self.exec.cut_after = self.cut_after
        succeeded = None if word == "restore" else ok
        conversation = self.conversation(cast(ExecStream, self.exec), request)
        workspace = self.workspace
        results = [replace(each, seconds=0.0) async for each in conversation_results(conversation, succeeded=succeeded)]
        assert [name for name in os.listdir(workspace) if name.startswith(".sealci")] == []
        return results

    async def fill(self, text: str, scope: CacheScope = MAIN, **files: str) -> None:
        """Run a pod that misses, and saves `text`."""
        self.new(**files)
        assert {each.kind for each in await self.run("restore", scope=scope)} <= {MISS, FALLBACK}
        if self.cached() is None:
            self.cached(text)
        assert [each.kind for each in await self.run("save", scope=scope)] == [SAVED]


class StorePods(Pods):
    """Pods with a cache in an object store."""

    def __init__(self, folder: Path, fake: FakeStore) -> None:
        super().__init__(folder)
        self.fake, self.objects = fake, CacheObjects(fake)
        self.store = CacheStore(cast(ObjectStore, self.objects), folder / "key")

    @property
    def cache(self) -> CacheLayout:
        return self.store

    def conversation(self, stream: ExecStream, request: CacheRequest) -> CacheConversation:
        return StoreConversation(stream, self.store, request)

    @property
    def files(self) -> dict[str, bytes]:
        return self.objects.objects

    def write(self, name: str, data: bytes | None) -> None:
        if data is None:
            del self.fake.objects[self.objects.path(name)]
        else:
            self.objects.write(name, data)


class RealStorePods(Pods):
    """Pods with a cache in a real object store. `objects` returns the files behind the objects."""

    def __init__(self, folder: Path, store: ObjectStore, objects: Callable[[], Mapping[str, Path]]) -> None:
        super().__init__(folder)
        self.store, self.objects = CacheStore(store, folder / "key"), objects

    @property
    def cache(self) -> CacheLayout:
        return self.store

    def conversation(self, stream: ExecStream, request: CacheRequest) -> CacheConversation:
        return StoreConversation(stream, self.store, request)

    @property
    def files(self) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in self.objects().items()}

    def write(self, name: str, data: bytes | None) -> None:
        path = self.objects()[name]
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)


class ClaimPods(Pods):
    """Pods with a cache on a volume."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.claim.mkdir()
        self.layout = CacheLayout(folder / "key")

    @property
    def cache(self) -> CacheLayout:
        return self.layout

    def conversation(self, stream: ExecStream, request: CacheRequest) -> CacheConversation:
        return ClaimConversation(stream, self.layout, request)

    @property
    def files(self) -> dict[str, bytes]:
        found = (path for path in self.claim.rglob("*") if path.is_file())
        return {path.relative_to(self.claim).as_posix(): path.read_bytes() for path in found}

    def write(self, name: str, data: bytes | None) -> None:
        if data is None:
            (self.claim / name).unlink()
        else:
            (self.claim / name).write_bytes(data)
