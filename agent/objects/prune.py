"""Delete old entries of the cache, and archives that no entry names. `sealci-agent cache prune` calls this.

An archive is stored before its entry, so an archive without an entry is only deleted when it is a day old.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from agent.objects.cache import read_entry
from agent.objects.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.objects.cache import CacheStore, ListedObject

# Maximum number of pages of the list of all objects: two million objects.
MAX_PAGES = 10_000
# Seconds for which an archive without an entry is kept. Its entry may be about to be stored.
UNNAMED_SECONDS = 86400.0
NOT_FOUND = 404


@dataclass(slots=True)
class Pruned:
    """What was deleted, or would be. `bytes` is the size of the deleted archives, `kept_bytes` of the others."""

    entries: int = 0
    archives: int = 0
    bytes: int = 0
    kept_entries: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True, slots=True)
class KnownEntry:
    """An entry with the name and the size of its archive, "" if the entry cannot be used."""

    listed: ListedObject
    archive: str
    size: int


def age(listed: ListedObject, now: float) -> float:
    """Return the seconds since an object was stored, 0 if the store does not name the time."""
    try:
        return now - datetime.fromisoformat(listed.modified).timestamp()
    except ValueError:
        return 0.0


async def prune(
    cache: CacheStore, now: float, *, older_than: float | None = None, max_bytes: int | None = None, dry_run: bool
) -> Pruned:
    """Delete entries older than `older_than` seconds, then the oldest until the archives have at most `max_bytes`.

    Then delete archives that no entry names. `now` is in seconds since the epoch.

    Raises:
        StoreError: the store cannot be asked, or does not delete an object.
    """
    archives: dict[str, ListedObject] = {}
    entries: list[KnownEntry] = []
    key = await cache.sign_key()
    async for each in cache.listed(f"{cache.top}/", MAX_PAGES):
        if each.name.count("/blob/") and "/key/" not in each.name:
            archives[each.name] = each
        elif "/key/" in each.name:
            entries.append(await known_entry(cache, each, key))
    kept = kept_entries(entries, now, older_than, max_bytes)
    named = {each.archive for each in kept}
    kept_names = {each.listed.name for each in kept}
    dropped = [each.listed.name for each in entries if each.listed.name not in kept_names]
    unnamed = [name for name, each in archives.items() if name not in named and age(each, now) > UNNAMED_SECONDS]
    if not dry_run:
        # Entries go first, so that no entry names an archive that is gone.
        for name in (*dropped, *unnamed):
            await cache.request("DELETE", name)
    size = sum(archives[name].size for name in unnamed)
    total = sum(each.size for each in archives.values())
    return Pruned(len(dropped), len(unnamed), size, len(kept), total - size)


async def known_entry(cache: CacheStore, listed: ListedObject, key: bytes) -> KnownEntry:
    try:
        archive = read_entry(await cache.request("GET", listed.name), listed.name, key, "")
    except StoreError as error:
        if error.status != NOT_FOUND:
            raise
        archive = None
    if archive is None:
        return KnownEntry(listed, "", 0)
    folder = listed.name.partition("/key/")[0]
    return KnownEntry(listed, f"{folder}/blob/{archive.sha256}", archive.size)


def kept_entries(
    entries: Sequence[KnownEntry], now: float, older_than: float | None, max_bytes: int | None
) -> list[KnownEntry]:
    """Return the entries that stay. Entries that cannot be used do not. The newest come first."""
    kept: list[KnownEntry] = []
    archives: set[str] = set()
    total = 0
    for each in sorted(entries, key=lambda each: each.listed.modified, reverse=True):
        if not each.archive or (older_than is not None and age(each.listed, now) > older_than):
            continue
        size = 0 if each.archive in archives else each.size
        if max_bytes is not None and total + size > max_bytes:
            continue
        archives.add(each.archive)
        total += size
        kept.append(each)
    return kept
