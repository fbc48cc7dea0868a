"""The cache in the object store: entries, which name archives, and archives, which are named by their content.

A `CacheStore` lives as long as the agent. An entry is a small JSON object at the place that scope, key and version
give. It names an archive by its SHA-256. The agent signs each entry with a key that only agents have. So a program that
can write to the bucket can break a cache, but it cannot choose what an action gets. An archive is stored before its
entry, so half an upload is never found. Entries are never overwritten.
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
from urllib.parse import quote, unquote

from agent.objects.errors import StoreError, xml_field
from agent.objects.grants import UploadGrants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from agent.objects.grants import WantedObject
    from agent.objects.store import ObjectStore

# Format of the archives. Another format, or other paths of a cache, are another version of an entry.
FORMAT = "tar.gz"
# Minimum number of characters of the key that signs entries.
MIN_KEY = 32
SHA256_DIGITS = 64
# Number of failed requests in a row after which caches are not used, and the seconds for which they are not.
MAX_FAILURES = 3
PAUSE_SECONDS = 60.0
# Number of names in one page of a list, so that the page is read whole, and maximum number of pages.
PAGE = 200
MAX_PAGES = 20
NOT_FOUND = 404
PRECONDITION_FAILED = 412
CONFLICT = 409
NOT_IMPLEMENTED = 501


class EntryRefused(StoreError):
    """An entry was not stored by an agent at this place, so it is not used."""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive in the store. `scope` is the scope that holds it."""

    scope: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an entry."""

    scope: str
    key: str
    version: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a list. `modified` is a time that can be compared as text."""

    name: str
    size: int
    modified: str


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


class CacheStore:
    """The entries and the archives of all scopes. Owned by the application."""

    def __init__(self, store: ObjectStore, sign_key_file: Path) -> None:
        self.store = store
        self.sign_key_file = sign_key_file
        self.breaker = Breaker()
        self.top = f"{store.settings.prefix}/cache/v1"

    # ---- names

    def folder(self, scope: str) -> str:
        """Return the start of all names of a scope. It is a hash, so that no scope is a folder of another one."""
        return f"{self.top}/{hashlib.sha256(scope.encode()).hexdigest()}"

    def entry_name(self, place: Place) -> str:
        return f"{self.folder(place.scope)}/key/{quote(place.key, safe='')}/{place.version}"

    def archive_name(self, archive: Archive) -> str:
        return f"{self.folder(archive.scope)}/blob/{archive.sha256}"

    # ---- entries

    async def request(self, method: str, name: str, **options: object) -> bytes:
        """Send a request that counts for the breaker.

        Raises:
            StoreError: the store does not answer, or refuses the request.
        """
        try:
            _, body = await self.store.request(method, name, **options)  # type: ignore[arg-type]
        except StoreError as error:
            self.breaker.count(failed=error.status not in (NOT_FOUND, PRECONDITION_FAILED, CONFLICT))
            raise
        self.breaker.count(failed=False)
        return body

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

    async def find(self, place: Place) -> Archive | None:
        """Return the archive of an entry, None if there is no entry.

        Raises:
            EntryRefused: the signature of the entry is wrong.
            StoreError: the store cannot be asked.
        """
        name, key = self.entry_name(place), await self.sign_key()
        try:
            body = await self.request("GET", name)
        except StoreError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        if (found := read_entry(body, name, key, place.scope)) is None:
            raise EntryRefused(f"the entry of the key {place.key} has a wrong signature, so it is not used")
        return found

    async def find_newest(self, scope: str, prefix: str, version: str) -> tuple[str, Archive] | None:
        """Return the key and the archive of the newest entry of a scope whose key begins with `prefix`.

        Raises:
            StoreError: the store cannot be asked.
        """
        folder = f"{self.folder(scope)}/key/"
        found = [
            each
            async for each in self.listed(f"{folder}{quote(prefix, safe='')}")
            if each.name.endswith(f"/{version}") and each.name.count("/") == folder.count("/") + 1
        ]
        newest = max(found, key=lambda each: each.modified, default=None)
        if newest is None:
            return None
        key = unquote(newest.name.removeprefix(folder).rpartition("/")[0])
        archive = await self.find(Place(scope, key, version))
        return (key, archive) if archive is not None else None

    async def listed(self, prefix: str, pages: int = MAX_PAGES) -> AsyncIterator[ListedObject]:
        """Yield the objects whose names begin with `prefix`, in at most `pages` pages.

        Raises:
            StoreError: the store does not list the objects.
        """
        query = {"list-type": "2", "prefix": prefix, "max-keys": str(PAGE)}
        for _ in range(pages):
            body = await self.request("GET", "", query=query)
            for each in re.findall(rb"<Contents>(.*?)</Contents>", body, re.DOTALL):
                size = xml_field(each, "Size")
                modified = xml_field(each, "LastModified")
                yield ListedObject(xml_field(each, "Key"), int(size) if size.isdigit() else 0, modified)
            query["continuation-token"] = xml_field(body, "NextContinuationToken")
            if xml_field(body, "IsTruncated") != "true" or not query["continuation-token"]:
                return

    async def add(self, place: Place, archive: Archive) -> bool:
        """Store an entry for an archive that is stored. Return False if there is an entry already.

        Raises:
            StoreError: the store does not take the entry.
        """
        name = self.entry_name(place)
        body = entry_text(name, archive, await self.sign_key())
        try:
            await self.request("PUT", name, headers={"if-none-match": "*"}, body=body)
        except StoreError as error:
            if error.status in (PRECONDITION_FAILED, CONFLICT):
                return False
            if error.status != NOT_IMPLEMENTED:
                raise
            # A store without conditional requests: the last writer wins, and each entry is whole.
            await self.request("PUT", name, body=body)
        return True

    async def drop(self, place: Place) -> None:
        """Delete an entry that cannot be used, so that the key can be saved again."""
        await self.request("DELETE", self.entry_name(place))

    # ---- archives

    async def url(self, archive: Archive) -> str:
        """Return a URL that allows to read an archive.

        Raises:
            StoreError: there are no credentials.
        """
        return self.store.sign(await self.store.credentials(), "GET", self.archive_name(archive))


class ArchiveGrants(UploadGrants):
    """Signs the upload of one archive into a scope. The name of the object is the hash of its content."""

    def __init__(self, cache: CacheStore, scope: str) -> None:
        super().__init__(cache.store, f"{cache.folder(scope)}/blob")

    def name(self, wanted: WantedObject) -> str:
        return f"{self.folder}/{wanted.sha256.hex()}"


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
        return archive if entry["format"] == FORMAT and len(archive.sha256) == SHA256_DIGITS else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
