"""The cache in the object store. `cache_entries` explains what is stored.

A `CacheStore` lives as long as the agent. The agent reads and writes entries, and container `helper` of a pod moves the
archives with signed URLs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from agent.objects.cache_entries import TOP, Archive, CacheLayout, Place
from agent.objects.errors import StoreError, xml_field
from agent.objects.grants import UploadGrants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.objects.grants import WantedObject
    from agent.objects.store import ObjectStore

# Number of names in one page of a list, so that the page is read whole, and maximum number of pages.
PAGE = 200
MAX_PAGES = 20
NOT_FOUND = 404
PRECONDITION_FAILED = 412
CONFLICT = 409
NOT_IMPLEMENTED = 501


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a list. `modified` is a time that can be compared as text."""

    name: str
    size: int
    modified: str


class CacheStore(CacheLayout):
    """The entries and the archives of all scopes. Owned by the application."""

    def __init__(self, store: ObjectStore, sign_key_file: Path) -> None:
        super().__init__(sign_key_file, f"{store.settings.prefix}/{TOP}")
        self.store = store

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

    async def find(self, place: Place) -> Archive | None:
        """Return the archive of an entry, None if there is no entry.

        Raises:
            EntryRefused: the signature of the entry is wrong.
            StoreError: the store cannot be asked.
        """
        key = await self.sign_key()
        try:
            body = await self.request("GET", self.entry_name(place))
        except StoreError as error:
            if error.status == NOT_FOUND:
                return None
            raise
        return self.checked(body, place, key)

    async def find_newest(self, scope: str, prefix: str, version: str) -> tuple[str, Archive] | None:
        """Return the key and the archive of the newest entry of a scope whose key begins with `prefix`.

        Raises:
            StoreError: the store cannot be asked.
        """
        folder = f"{self.folder(scope)}/key/"
        found = [
            each
            async for each in Listing(self, f"{folder}{quote(prefix, safe='')}", MAX_PAGES)
            if each.name.endswith(f"/{version}") and each.name.count("/") == folder.count("/") + 1
        ]
        newest = max(found, key=lambda each: each.modified, default=None)
        if newest is None:
            return None
        key = unquote(newest.name.removeprefix(folder).rpartition("/")[0])
        archive = await self.find(Place(scope, key, version))
        return (key, archive) if archive is not None else None

    async def add(self, place: Place, archive: Archive) -> bool:
        """Store an entry for an archive that is stored. Return False if there is an entry already.

        Raises:
            StoreError: the store does not take the entry.
        """
        name = self.entry_name(place)
        body = await self.signed_entry(place, archive)
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


class Listing:
    """The objects whose names begin with `prefix`, in at most `pages` pages. Lives as long as it is iterated.

    `whole`: all objects were listed. False until the end of the iteration.
    """

    def __init__(self, cache: CacheStore, prefix: str, pages: int) -> None:
        self.cache, self.prefix, self.pages = cache, prefix, pages
        self.whole = False

    async def __aiter__(self) -> AsyncIterator[ListedObject]:
        """Yield each object.

        Raises:
            StoreError: the store does not list the objects.
        """
        query = {"list-type": "2", "prefix": self.prefix, "max-keys": str(PAGE)}
        for _ in range(self.pages):
            body = await self.cache.request("GET", "", query=query)
            for each in re.findall(rb"<Contents>(.*?)</Contents>", body, re.DOTALL):
                size = xml_field(each, "Size")
                modified = xml_field(each, "LastModified")
                yield ListedObject(xml_field(each, "Key"), int(size) if size.isdigit() else 0, modified)
            # An answer that was cut may lack the field, so only the word of the store is the end.
            self.whole = xml_field(body, "IsTruncated") == "false"
            query["continuation-token"] = xml_field(body, "NextContinuationToken")
            if self.whole or not query["continuation-token"]:
                return


class ArchiveGrants(UploadGrants):
    """Signs the upload of one archive into a scope. The name of the object is the hash of its content."""

    def __init__(self, cache: CacheStore, scope: str) -> None:
        super().__init__(cache.store, f"{cache.folder(scope)}/blob")

    def name(self, wanted: WantedObject) -> str:
        return f"{self.folder}/{wanted.sha256.hex()}"
