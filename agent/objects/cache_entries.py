"""Entries of the cache: where they are, and who can make one. They are the same in the object store and on a volume.

An entry is a small JSON object at the place that scope, key and version give. It names an archive by its SHA-256. The
agent signs each entry with a key that only agents have. So a program that can write to the store can break a cache, but
it cannot choose what an action gets. An archive is stored before its entry, so half a save is never found. Entries are
never overwritten.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from agent.objects.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Folder of the entries and archives, below the prefix of the object store or in the volume.
TOP = "cache/v1"
# Format of the archives. Another format, or other paths of a cache, are another version of an entry.
FORMAT = "tar.gz"
# Minimum number of characters of the key that signs entries.
MIN_KEY = 32
SHA256 = re.compile("[0-9a-f]{64}")
# Number of failed requests in a row after which caches are not used, and the seconds for which they are not.
MAX_FAILURES = 3
PAUSE_SECONDS = 60.0


class EntryRefused(StoreError):
    """An entry was not stored by an agent at this place, so it is not used."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of the cache. `scope` is the scope that holds it."""

    scope: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an entry."""

    scope: str
    key: str
    version: str


def version_of(paths: tuple[str, ...]) -> str:
    """Return the version of an entry. It changes with the paths of the cache and with the format of archives."""
    return hashlib.sha256(json.dumps([FORMAT, *paths]).encode()).hexdigest()[:16]


class Breaker:
    """Decides whether caches are used. After several failed requests in a row, they are not, for a while."""

    def __init__(self) -> None:
        self.failures = 0
        self.open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Return whether caches are not used for now."""
        return time.monotonic() < self.open_until

    def count(self, *, failed: bool) -> None:
        self.failures = self.failures + 1 if failed else 0
        if self.failures >= MAX_FAILURES:
            self.failures, self.open_until = 0, time.monotonic() + PAUSE_SECONDS


class CacheLayout:
    """The names of all entries and archives, and the key that signs entries. Lives as long as the agent.

    This is all that an agent needs for a cache on a volume, where the helper reads and writes. `top` is the start of
    all names.
    """

    def __init__(self, sign_key_file: Path, top: str = TOP) -> None:
        self.sign_key_file = sign_key_file
        self.top = top
        self.breaker = Breaker()

    def folder(self, scope: str) -> str:
        """Return the start of all names of a scope. It is a hash, so that no scope is a folder of another one."""
        return f"{self.top}/{hashlib.sha256(scope.encode()).hexdigest()}"

    def entry_name(self, place: Place) -> str:
        return f"{self.folder(place.scope)}/key/{quote(place.key, safe='')}/{place.version}"

    def archive_name(self, archive: Archive) -> str:
        return f"{self.folder(archive.scope)}/blob/{archive.sha256}"

    async def sign_key(self) -> bytes:
        """Read the key that signs entries. It is read each time, so that it can be rotated.

        Raises:
            StoreError: the file cannot be read, or the key is too short.
        """
        try:
            key = (await asyncio.to_thread(self.sign_key_file.read_bytes)).strip()
        except OSError as error:
            raise StoreError(f"caches.sign_key_file: {self.sign_key_file} cannot be read: {error.strerror}") from error
        if len(key) < MIN_KEY:
            raise StoreError(f"caches.sign_key_file: {self.sign_key_file} has less than {MIN_KEY} characters")
        return key

    async def signed_entry(self, place: Place, archive: Archive) -> bytes:
        """Return the content of an entry.

        Raises:
            StoreError: there is no key.
        """
        return entry_text(self.entry_name(place), archive, await self.sign_key())

    def checked(self, body: bytes, place: Place, key: bytes) -> Archive:
        """Return the archive of an entry.

        Raises:
            EntryRefused: the signature of the entry is wrong.
        """
        if (found := read_entry(body, self.entry_name(place), key, place.scope)) is None:
            raise EntryRefused(f"the entry of the key {place.key} has a wrong signature, so it is not used")
        return found


def signature(name: str, entry: Mapping[str, object], key: bytes) -> str:
    """Return the signature of an entry at its place, so that an entry cannot be copied to another place."""
    return hmac.new(key, f"{name}\n{json.dumps(entry, sort_keys=True)}".encode(), "sha256").hexdigest()


def entry_text(name: str, archive: Archive, key: bytes) -> bytes:
    entry = {"sha256": archive.sha256, "size": archive.size, "format": FORMAT, "created": int(time.time())}
    return json.dumps(entry | {"signature": signature(name, entry, key)}).encode()


def read_entry(body: bytes, name: str, key: bytes, scope: str) -> Archive | None:
    """Return the archive that an entry names. None if the entry is not one that an agent has stored at this place."""
    try:
        entry = json.loads(body)
        found = str(entry.pop("signature"))
        if not hmac.compare_digest(found.encode(), signature(name, entry, key).encode()):
            return None
        archive = Archive(scope, str(entry["sha256"]), int(entry["size"]))
        return archive if entry["format"] == FORMAT and SHA256.fullmatch(archive.sha256) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
