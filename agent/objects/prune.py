"""Delete old entries of the cache, and archives that no entry names. `sealci-agent cache prune` calls this.

An archive is stored before its entry, so an archive without an entry is only deleted when it is a day old. An archive
is never deleted if an entry of its scope may not have been listed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from agent.domain.errors import SettingsError
from agent.objects.cache import CacheStore, Listing
from agent.objects.cache_entries import read_entry
from agent.objects.errors import StoreError
from agent.objects.store import ObjectStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.objects.cache import ListedObject
    from agent.settings import Settings

# Maximum number of pages of the list of all objects: two million objects.
MAX_PAGES = 10_000
# Seconds for which an archive without an entry is kept. Its entry may be about to be stored.
UNNAMED_SECONDS = 86400.0
NOT_FOUND = 404
ENTRIES, ARCHIVES = "/key/", "/blob/"


@dataclass(slots=True)
class Pruned:
    """What was deleted, or would be. `bytes` is the size of the deleted archives, `kept_bytes` of the others.

    `cut`: there is more than could be listed.
    """

    entries: int = 0
    archives: int = 0
    bytes: int = 0
    kept_entries: int = 0
    kept_bytes: int = 0
    cut: bool = False


@dataclass(frozen=True, slots=True)
class KnownEntry:
    """An entry with the name and the size of its archive, "" if the entry cannot be used. `age` is in seconds."""

    name: str
    age: float
    archive: str
    size: int


@dataclass(frozen=True, slots=True)
class KnownArchive:
    """An archive. `age` is in seconds."""

    name: str
    age: float
    size: int


@dataclass(slots=True)
class Contents:
    """What a cache contains. `uncertain`: the folders of scopes that may have further entries."""

    entries: list[KnownEntry] = field(default_factory=list)
    archives: list[KnownArchive] = field(default_factory=list)
    uncertain: set[str] = field(default_factory=set)
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Deletion:
    """The names of what has to be deleted, entries first, so that no entry names an archive that is gone."""

    entries: list[str]
    archives: list[str]
    counts: Pruned


def scope_folder(name: str) -> str:
    """Return the folder of the scope that an entry or an archive belongs to."""
    return name.partition(ENTRIES)[0].partition(ARCHIVES)[0]


def choose(contents: Contents, older_than: float | None, max_bytes: int | None) -> Deletion:
    """Choose entries older than `older_than` seconds, then the oldest until the archives have at most `max_bytes`.

    Then choose archives that no entry names.
    """
    kept = kept_entries(contents.entries, older_than, max_bytes)
    named, kept_names = {each.archive for each in kept}, {each.name for each in kept}
    dropped = [each.name for each in contents.entries if each.name not in kept_names]
    unnamed = [
        each
        for each in contents.archives
        if each.name not in named and each.age > UNNAMED_SECONDS and scope_folder(each.name) not in contents.uncertain
    ]
    size, total = sum(each.size for each in unnamed), sum(each.size for each in contents.archives)
    counts = Pruned(len(dropped), len(unnamed), size, len(kept), total - size, contents.cut)
    return Deletion(dropped, [each.name for each in unnamed], counts)


def kept_entries(entries: Sequence[KnownEntry], older_than: float | None, max_bytes: int | None) -> list[KnownEntry]:
    """Return the entries that stay. Entries that cannot be used do not. The newest come first."""
    kept: list[KnownEntry] = []
    archives: set[str] = set()
    total = 0
    for each in sorted(entries, key=lambda each: each.age):
        if not each.archive or (older_than is not None and each.age > older_than):
            continue
        size = 0 if each.archive in archives else each.size
        if max_bytes is not None and total + size > max_bytes:
            continue
        archives.add(each.archive)
        total += size
        kept.append(each)
    return kept


# ---- in an object store


async def prune(
    cache: CacheStore, now: float, *, older_than: float | None = None, max_bytes: int | None = None, dry_run: bool
) -> Pruned:
    """Delete what `choose` chooses. `now` is in seconds since the epoch.

    Raises:
        StoreError: the store cannot be asked, or does not delete an object.
    """
    chosen = choose(await read_store(cache, now), older_than, max_bytes)
    if not dry_run:
        for name in (*chosen.entries, *chosen.archives):
            await cache.request("DELETE", name)
    return chosen.counts


async def prune_store(settings: Settings, *, older_than: float | None, max_bytes: int | None, dry_run: bool) -> Pruned:
    """Do the same with the cache that the settings name.

    Raises:
        SettingsError: the settings name no cache in an object store.
        StoreError: the store cannot be asked, or does not delete an object.
    """
    caches = settings.caches
    if caches.store == "claim":
        raise SettingsError("caches.store: is claim, so use --folder in a pod that mounts the claim")
    if caches.sign_key_file is None:
        raise SettingsError("caches.store: is none, so there is no cache to prune")
    cache = CacheStore(ObjectStore(settings.objects), caches.sign_key_file)
    return await prune(cache, time.time(), older_than=older_than, max_bytes=max_bytes, dry_run=dry_run)


async def read_store(cache: CacheStore, now: float) -> Contents:
    """Return the entries and the archives of an object store.

    Raises:
        StoreError: the store cannot be asked.
    """
    contents, key = Contents(), await cache.sign_key()
    listing = Listing(cache, f"{cache.top}/", MAX_PAGES)
    last, in_order = "", True
    async for each in listing:
        in_order, last = in_order and each.name >= last, each.name
        if ENTRIES in each.name:
            contents.entries.append(await known_entry(cache, each, key, now))
        elif ARCHIVES in each.name:
            contents.archives.append(KnownArchive(each.name, age(each, now), each.size))
    if not listing.whole:
        contents.cut = True
        # Names come in the order of the alphabet, so only the last scope can have entries that are not listed. If a
        # store lists in another order, any scope can have such entries.
        folders = {scope_folder(each.name) for each in contents.archives}
        contents.uncertain = {folder for folder in folders if not in_order or folder >= scope_folder(last)}
    return contents


def age(listed: ListedObject, now: float) -> float:
    """Return the seconds since an object was stored, 0 if the store does not name the time."""
    try:
        return now - datetime.fromisoformat(listed.modified).timestamp()
    except ValueError:
        return 0.0


async def known_entry(cache: CacheStore, listed: ListedObject, key: bytes, now: float) -> KnownEntry:
    try:
        archive = read_entry(await cache.request("GET", listed.name), listed.name, key, "")
    except StoreError as error:
        if error.status != NOT_FOUND:
            raise
        archive = None
    if archive is None:
        return KnownEntry(listed.name, age(listed, now), "", 0)
    name = f"{scope_folder(listed.name)}{ARCHIVES}{archive.sha256}"
    return KnownEntry(listed.name, age(listed, now), name, archive.size)
