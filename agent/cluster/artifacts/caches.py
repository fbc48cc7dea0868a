"""Restore and save the caches of an action, by an exec of the program `caches` in container `helper`.

The exec carries a few hundred bytes for each cache: requests of the agent as lines of JSON, and the answers of the
program. The agent chooses entries, and the helper moves the archives. `StoreConversation` is for a cache in an object
store, and `claim_caches` for one on a volume. A conversation lives as long as its exec. A fault of one cache is its
result. An error is raised only if the exec breaks.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.cluster import packaging
from agent.cluster.api.exec import ExecError
from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.cluster.artifacts.objects import FRAME_BYTES, Conversation, lines
from agent.cluster.artifacts.tar_header import ArchiveError
from agent.domain.artifacts import FileEnd, FileStart
from agent.domain.errors import ClusterError
from agent.domain.events import CacheKind, CacheResult
from agent.domain.references.cache_key import HASH, filled_in, hashes_in
from agent.objects.cache import ArchiveGrants
from agent.objects.cache_entries import Archive, EntryRefused, Place, version_of
from agent.objects.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from agent.cluster.api.exec import ExecStream
    from agent.domain.actions import Cache, CacheScope
    from agent.objects.cache import CacheStore
    from agent.objects.cache_entries import CacheLayout

# Faults after which no other action could use the entry either.
BROKEN = ("missing", "digest", "archive")
# The begin of a line about the progress.
MOVED = b'{"moved"'
UNUSABLE = (ArchiveError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True, slots=True)
class CacheRequest:
    """What an exec needs to know: the caches of the action, its scope and image, and the limits.

    `seconds` is the time for all caches, `max_bytes` the largest size of an archive, `writes` whether entries may be
    stored or deleted. `show_moved` gets the key of a cache, the bytes of its archive that were moved, and the size.
    """

    caches: tuple[Cache, ...]
    scope: CacheScope
    image: str
    seconds: float
    max_bytes: int
    writes: bool
    show_moved: Callable[[str, int, int], None] = lambda *_: None

    def command(self, word: str, workspace: str) -> list[str]:
        numbers = (str(int(self.seconds)), str(self.max_bytes))
        folders = (workspace, packaging.LOG_FOLDER, packaging.CLAIM_FOLDER)
        return [*packaging.caches_program(), word, *folders, *numbers]

    @property
    def write_scope(self) -> str:
        """The scope in which entries may be stored, "" for none."""
        return self.scope.write if self.writes else ""


class CacheConversation(ABC):
    """The agent's side of one exec. `restore` and `save` use one each. A subclass knows where the cache is."""

    def __init__(self, stream: ExecStream, cache: CacheLayout, request: CacheRequest, ca: str = "") -> None:
        self.stream, self.cache, self.request, self.ca = stream, cache, request, ca
        self.answers: AsyncIterator[bytes] = lines(stream)
        self.key = ""  # of the cache whose archive is on its way
        self.stuck = False  # the program waits for signed URLs that it will not get

    @abstractmethod
    async def find_entry(self, place: Place) -> Archive | None:
        """Return the archive of an entry, None if there is no entry.

        Raises:
            EntryRefused: the signature of the entry is wrong.
            StoreError: the cache cannot be asked.
        """

    @abstractmethod
    async def find_newest(self, scope: str, prefix: str, version: str) -> tuple[str, Archive] | None:
        """Return the key and the archive of the newest entry of a scope whose key begins with `prefix`.

        Raises:
            StoreError: the cache cannot be asked.
        """

    @abstractmethod
    async def drop_entry(self, place: Place) -> None:
        """Delete an entry.

        Raises:
            StoreError: the entry cannot be deleted.
        """

    @abstractmethod
    async def source(self, place: Place, archive: Archive) -> dict[str, object]:
        """Return where the helper finds the archive of an entry.

        Raises:
            StoreError: there are no credentials.
        """

    @abstractmethod
    async def put(self, cache: Cache, place: Place) -> CacheResult:
        """Let the helper store an archive, and store its entry.

        Raises:
            StoreError: the archive or the entry cannot be stored.
        """

    async def send(self, message: dict[str, object]) -> None:
        data = json.dumps(message).encode() + b"\n"
        for at in range(0, len(data), FRAME_BYTES):
            await self.stream.send(data[at : at + FRAME_BYTES])

    async def read(self) -> bytes:
        """Return the next answer of the program. Show the lines about the progress before it.

        Raises:
            ClusterError: the program has ended.
        """
        try:
            while (line := await anext(self.answers)).startswith(MOVED):
                done, size = json.loads(line)["moved"]
                self.request.show_moved(self.key, int(done), int(size))
            return line
        except StopAsyncIteration:
            last = bytes(self.stream.stderr).decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise ClusterError(f"the program for caches ended: {last[:500] or 'no message'}", retryable=True) from None

    async def ask(self, message: dict[str, object]) -> dict[str, Any]:
        await self.send(message)
        return self.timely(await self.read())

    def timely(self, line: bytes) -> dict[str, Any]:
        """Return the answer in a line of the program.

        Raises:
            ClusterError: the program has ended at its time limit.
        """
        answer: dict[str, Any] = json.loads(line)
        if answer.get("fault") == "time":
            self.cache.breaker.count(failed=True)
            raise ClusterError(f"the caches were not copied within {self.request.seconds:g} s")
        return answer

    # ---- before the commands

    async def restore(self) -> AsyncGenerator[CacheResult, None]:
        """Yield one result for each cache. Yields nothing if the commands have begun."""
        caches = self.request.caches
        globs = sorted(
            {name.removeprefix(HASH) for each in caches for key in each.templates for name in hashes_in(key)}
        )
        facts = await self.ask({"caches": globs, "ca": self.ca})
        if facts.get("started"):
            return
        values = {HASH + each: str(value) for each, value in facts["hashes"].items()}
        values |= {"image": self.request.image, "arch": str(facts["arch"]), "os": str(facts["os"])}
        note: list[dict[str, object]] = []
        for cache in caches:
            result, wanted = await self.restore_one(cache, values, facts["faults"])
            note.append({"key": result.key, "save": wanted})
            yield result
        await self.ask({"end": note})

    async def restore_one(
        self, cache: Cache, values: dict[str, str], faults: dict[str, str]
    ) -> tuple[CacheResult, bool]:
        """Return what happened to one cache, and whether the cache may be saved later."""
        began = time.monotonic()
        for key in cache.templates:
            for name in hashes_in(key):
                if name not in values:
                    why = str(faults.get(name.removeprefix(HASH), "a file cannot be read"))
                    return CacheResult(cache.key, CacheKind.SKIPPED, message=why), False
        try:
            keys = [filled_in(each, values) for each in cache.templates]
        except ValueError as error:
            return CacheResult(cache.key, CacheKind.SKIPPED, message=str(error)), False
        result = CacheResult(keys[0], CacheKind.MISS)
        try:
            if found := await self.find(cache, keys):
                result = await self.get(cache, keys[0], *found)
        except StoreError as error:
            result = replace(result, message=error.message)
        result = replace(result, seconds=time.monotonic() - began)
        return result, result.kind is not CacheKind.HIT

    async def find(self, cache: Cache, keys: Sequence[str]) -> tuple[str, Archive] | None:
        """Return the key and the archive of the first entry: each key in all scopes, and then the prefix.

        Raises:
            StoreError: the store cannot be asked, or an entry was refused. A refused entry is deleted.
        """
        version, (*exact, prefix) = version_of(cache.paths), keys
        for key in dict.fromkeys(exact):
            for scope in self.request.scope.read:
                place = Place(scope, key, version)
                try:
                    if (archive := await self.find_entry(place)) is not None:
                        return key, archive
                except EntryRefused:
                    await self.drop(place)
                    raise
        for scope in self.request.scope.read if prefix else ():
            if (found := await self.find_newest(scope, prefix, version)) is not None:
                return found
        return None

    async def drop(self, place: Place) -> None:
        """Delete an entry that cannot be used, if this action may write there."""
        if place.scope == self.request.write_scope:
            await self.drop_entry(place)

    async def get(self, cache: Cache, key: str, used: str, archive: Archive) -> CacheResult:
        """Let the helper restore an archive.

        Raises:
            StoreError: there are no credentials, or an entry that is broken cannot be deleted.
        """
        if archive.size > self.request.max_bytes:
            text = f"the archive has {archive.size} bytes, more than caches.max_size"
            return CacheResult(key, CacheKind.MISS, message=text)
        self.key = used
        place = Place(archive.scope, used, version_of(cache.paths))
        wanted = await self.source(place, archive) | {"size": archive.size, "sha256": archive.sha256}
        answer = await self.ask({"get": wanted | {"paths": list(cache.paths)}})
        fault, message = str(answer.get("fault", "")), str(answer.get("message", ""))[:1000]
        self.cache.breaker.count(failed=fault == "store")
        if fault:
            if fault in BROKEN:
                await self.drop(place)
            return CacheResult(key, CacheKind.MISS, message=message)
        kind = CacheKind.HIT if used == key else CacheKind.FALLBACK
        left = "; ".join(str(each)[:300] for each in answer["left"][: len(cache.paths)])
        return CacheResult(key, kind, used, archive.size, message=left)

    # ---- after the commands

    async def save(self, *, succeeded: bool) -> AsyncGenerator[CacheResult, None]:
        """Yield one result for each cache that has to be saved after commands with this result."""
        note = json.loads(await self.read())["note"]
        for cache, each in zip(self.request.caches, note or (), strict=False):
            if each["save"] and cache.saves(succeeded=succeeded):
                yield await self.save_one(cache, str(each["key"]))
                if self.stuck:
                    return
        await self.ask({"end": []})

    async def save_one(self, cache: Cache, key: str) -> CacheResult:
        began = time.monotonic()
        try:
            self.key = key
            result = await self.put(cache, Place(self.request.write_scope, key, version_of(cache.paths)))
        except StoreError as error:
            result = CacheResult(key, CacheKind.FAILED, message=error.message)
        return replace(result, seconds=time.monotonic() - began)

    def not_packed(self, key: str, answer: dict[str, Any]) -> CacheResult:
        """Return the result of a cache that the program has not stored."""
        kind = CacheKind.SKIPPED if answer["fault"] == "nothing" else CacheKind.FAILED
        self.cache.breaker.count(failed=answer["fault"] == "store")
        return CacheResult(key, kind, message=str(answer["message"])[:1000])


class StoreConversation(CacheConversation):
    """A conversation about caches in the object store."""

    def __init__(self, stream: ExecStream, store: CacheStore, request: CacheRequest, ca: str = "") -> None:
        super().__init__(stream, store, request, ca)
        self.store = store

    async def find_entry(self, place: Place) -> Archive | None:
        return await self.store.find(place)

    async def find_newest(self, scope: str, prefix: str, version: str) -> tuple[str, Archive] | None:
        return await self.store.find_newest(scope, prefix, version)

    async def drop_entry(self, place: Place) -> None:
        await self.store.drop(place)

    async def source(self, place: Place, archive: Archive) -> dict[str, object]:  # noqa: ARG002 - the URL is enough
        return {"url": await self.store.url(archive)}

    async def put(self, cache: Cache, place: Place) -> CacheResult:
        grants = ArchiveGrants(self.store, place.scope)
        try:
            return await self.upload(cache, place, grants)
        except StoreError:
            self.stuck = True
            raise
        finally:
            await grants.abort()

    async def upload(self, cache: Cache, place: Place, grants: ArchiveGrants) -> CacheResult:
        """Answer the program's questions until the archive is stored, and store its entry."""
        limit = self.request.max_bytes
        upload = Conversation(self.stream, grants, ArchiveLimits(1, limit, limit, self.request.seconds), self.ca)
        await self.send({"pack": list(cache.paths)})
        while True:
            line = await self.read()
            answer = self.timely(line)
            if "fault" in answer:
                return self.not_packed(place.key, answer)
            parts = await upload.answer(line)
            if "stored" in answer:
                break
        starts = [part for part in parts if isinstance(part, FileStart)]
        ends = [part for part in parts if isinstance(part, FileEnd)]
        if not starts or not ends:
            return CacheResult(place.key, CacheKind.FAILED, message="the archive changed while it was read")
        archive = Archive(place.scope, ends[0].sha256.hex(), starts[0].size)
        kind = CacheKind.SAVED if await self.store.add(place, archive) else CacheKind.EXISTS
        return CacheResult(place.key, kind, bytes=archive.size)


async def conversation_results(
    conversation: CacheConversation, *, succeeded: bool | None = None
) -> AsyncGenerator[CacheResult, None]:
    """Yield the results of one exec: of `save` after commands that `succeeded` or not, of `restore` if that is None.

    Raises:
        ClusterError: the exec broke. The caches without a result were neither restored nor saved.
    """
    try:
        async with conversation.stream:
            results = conversation.restore() if succeeded is None else conversation.save(succeeded=succeeded)
            async with aclosing(results):
                async for result in results:
                    yield result
    except ExecError as error:
        raise ClusterError(error.message, retryable=error.retryable, status=error.status) from error
    except UNUSABLE as error:
        raise ClusterError(f"the answer of the program for caches cannot be used: {error!r}") from error
