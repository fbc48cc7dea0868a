"""Restore and save caches on a volume that only container `helper` mounts, by the exec of `caches`.

The agent has no access to the volume. To restore, the helper sends the content of an entry, and the agent checks the
signature. To save, the helper writes the archive and reports its hash. Then the agent signs the entry, and the helper
writes it. So the key never leaves the agent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from agent.cluster.artifacts.caches import CacheConversation
from agent.domain.events import CacheKind, CacheResult
from agent.objects.cache_entries import SHA256, Archive, Place
from agent.objects.errors import StoreError

if TYPE_CHECKING:
    from agent.domain.actions import Cache


class ClaimConversation(CacheConversation):
    """A conversation about caches on a volume."""

    async def find_entry(self, place: Place) -> Archive | None:
        key = await self.cache.sign_key()
        text = (await self.ask_volume({"entry": self.cache.entry_name(place)}))["text"]
        return None if text is None else self.cache.checked(str(text).encode(), place, key)

    async def find_newest(self, scope: str, prefix: str, version: str) -> tuple[str, Archive] | None:
        folder = f"{self.cache.folder(scope)}/key"
        key = unquote((await self.ask_volume({"newest": [folder, quote(prefix, safe=""), version]}))["key"])
        archive = await self.find_entry(Place(scope, key, version)) if key else None
        return (key, archive) if archive is not None else None

    async def drop_entry(self, place: Place) -> None:
        await self.ask_volume({"drop": self.cache.entry_name(place)})

    async def source(self, place: Place, archive: Archive) -> dict[str, object]:
        return {"file": self.cache.archive_name(archive), "entry": self.cache.entry_name(place)}

    async def put(self, cache: Cache, place: Place) -> CacheResult:
        scope = self.cache.folder(place.scope)
        answer = await self.ask({"pack": list(cache.paths), "into": scope})
        if "fault" in answer:
            return self.not_packed(place.key, answer)
        archive = self.packed(place, answer["packed"])
        text = (await self.cache.signed_entry(place, archive)).decode()
        entry = {"scope": scope, "name": self.cache.entry_name(place), "text": text}
        added = (await self.ask_volume({"add": entry}))["added"]
        return CacheResult(place.key, CacheKind.SAVED if added else CacheKind.EXISTS, bytes=archive.size)

    def packed(self, place: Place, values: dict[str, Any]) -> Archive:
        """Return the archive that the program reports. The pod is not trusted, so the limits hold here too.

        Raises:
            ValueError: there is no such archive.
        """
        archive = Archive(place.scope, str(values["sha256"]), int(values["size"]))
        if not SHA256.fullmatch(archive.sha256) or not 0 <= archive.size <= self.request.max_bytes:
            raise ValueError("the archive has no hash, or too many bytes")
        return archive

    async def ask_volume(self, message: dict[str, object]) -> dict[str, Any]:
        """Return the answer to a request about an entry.

        Raises:
            StoreError: the volume does not work.
        """
        answer = await self.ask(message)
        self.cache.breaker.count(failed="fault" in answer)
        if "fault" in answer:
            raise StoreError(str(answer["message"])[:1000])
        return answer
