"""Grants: which objects a pod may put and get, what they are called, and which side signs the requests.

An `UploadGrants` lives as long as one collection. The names of its objects contain the claim, so an agent that another
agent has fenced cannot overwrite the objects of the new owner.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from agent.objects.errors import StoreError
from agent.objects.store import checksum_header, part_query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.domain.actions import Key
    from agent.objects.signature import Credentials
    from agent.objects.store import ObjectStore

# Maximum number of characters of the part of a name that stands for a path, and of one component. S3 allows 1024 bytes
# in a name, and stores on a file system allow 255 in a component.
MAX_NAME = 600
MAX_COMPONENT = 200
# Maximum number of files of one request for grants, and of parts of one file.
MAX_BATCH = 30
MAX_PARTS = 10_000
SHA256_BYTES = 32

# A request of a pod: the signed URL, and the headers that were signed with it.
Request = dict[str, object]


@dataclass(frozen=True, slots=True)
class WantedObject:
    """An object that a pod wants to put: a file, or a pack of small files if `path` is empty.

    `parts` are the hashes of its parts, in order, at least one. A pack has one part.
    """

    path: bytes
    mode: int
    size: int
    sha256: bytes
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class StoredName:
    """The name of a stored object, and the ETag that the store gave to it."""

    uri: str
    etag: str


def object_folder(prefix: str, pool: str, key: Key) -> str:
    """Return the start of the names of all objects of an attempt with this claim."""
    action = hashlib.sha256(key.action_id.encode()).hexdigest()
    return f"{prefix}/{pool}/{action}/{key.attempt}/{key.claim}"


def object_name(path: bytes) -> str:
    """Return the part of a name that stands for a path. It is ASCII, and short enough for every store."""
    text = quote(path, safe="-._~/ ()+,=@!")
    if len(text) > MAX_NAME or any(len(each) > MAX_COMPONENT for each in text.split("/")):
        # No other path has this name, because the names of short paths start with `files/`.
        return f"long-name/{hashlib.sha256(path).hexdigest()}"
    return f"files/{text}"


def pack_name(sha256: bytes) -> str:
    """Return the part of a name that stands for a pack. The name of no file begins so."""
    return f"packs/{sha256.hex()}"


class Grants(Protocol):
    """The requests with which one collection puts its files. All methods raise StoreError or SchedulerError."""

    async def requests(self, batch: Sequence[WantedObject]) -> list[list[Request]]:
        """Return one request for each part of each file. A repeated call returns requests for the same objects."""

    async def complete(self, wanted: WantedObject, etags: Sequence[str]) -> StoredName:
        """Return the name of an object whose parts are stored, with these ETags."""

    async def abort(self) -> None:
        """Drop the parts of uploads that were not completed. Raises nothing."""


class Issuer(Protocol):
    """The side that signs requests for an object store: this agent or its scheduler. Lives as long as the agent."""

    @property
    def ca(self) -> str:
        """Return the PEM certificates of the store's CA, "" for the CAs of the system."""

    def has(self, uri: str) -> bool:
        """Return whether this side may sign a request for the object with this name."""

    def uploads(self, key: Key) -> Grants:
        """Return the grants of a new collection of an attempt."""

    async def input_urls(self, key: Key, uris: Sequence[str]) -> list[str]:
        """Return a signed URL for each of these objects, which are inputs of an attempt.

        Raises:
            StoreError: there are no credentials, or the objects are no inputs of the attempt.
            SchedulerError: the scheduler does not answer.
        """


class StoreIssuer:
    """Signs requests with credentials of this process. `pool` is a part of the names of objects."""

    def __init__(self, store: ObjectStore, pool: str) -> None:
        self.store = store
        self.pool = pool

    @property
    def ca(self) -> str:
        return self.store.ca

    def has(self, uri: str) -> bool:
        return bool(self.store.key_of(uri))

    def uploads(self, key: Key) -> UploadGrants:
        return UploadGrants(self.store, object_folder(self.store.settings.prefix, self.pool, key))

    async def input_urls(self, key: Key, uris: Sequence[str]) -> list[str]:  # noqa: ARG002 - an agent trusts its scheduler
        credentials = await self.store.credentials()
        return [self.store.sign(credentials, "GET", self.store.key_of(uri)) for uri in uris]


class UploadGrants:
    """Signs the requests of one collection, and completes the uploads in parts. Owned by the collection.

    `uploads` has the store's id of each upload in parts that is not complete, by the name of the object.
    """

    def __init__(self, store: ObjectStore, folder: str) -> None:
        self.store = store
        self.folder = folder
        self.uploads: dict[str, str] = {}

    def name(self, wanted: WantedObject) -> str:
        return f"{self.folder}/{object_name(wanted.path) if wanted.path else pack_name(wanted.sha256)}"

    async def requests(self, batch: Sequence[WantedObject]) -> list[list[Request]]:
        """Return one request for each part of each file.

        Raises:
            StoreError: the store refuses to begin an upload in parts, or there are no credentials.
        """
        credentials = await self.store.credentials()
        return [await self.sign_parts(wanted, credentials) for wanted in batch]

    async def sign_parts(self, wanted: WantedObject, credentials: Credentials) -> list[Request]:
        name = self.name(wanted)
        if len(wanted.parts) == 1:
            headers = checksum_header(wanted.sha256)
            return [{"url": self.store.sign(credentials, "PUT", name, headers=headers), "headers": headers}]
        if name not in self.uploads:
            self.uploads[name] = await self.store.begin_upload(name)
        found: list[Request] = []
        for number, digest in enumerate(wanted.parts, 1):
            headers, query = checksum_header(digest), part_query(self.uploads[name], number)
            url = self.store.sign(credentials, "PUT", name, headers=headers, query=query)
            found.append({"url": url, "headers": headers})
        return found

    async def complete(self, wanted: WantedObject, etags: Sequence[str]) -> StoredName:
        """Return the name of an object whose parts are stored.

        Raises:
            StoreError: the store does not join the parts.
        """
        name = self.name(wanted)
        if len(etags) != len(wanted.parts):
            raise StoreError(f"{self.store.uri(name)}: {len(etags)} of {len(wanted.parts)} parts were stored")
        etag = etags[0]
        if name in self.uploads:
            etag = await self.store.complete_upload(
                name, self.uploads[name], list(zip(etags, wanted.parts, strict=True))
            )
            del self.uploads[name]
        return StoredName(self.store.uri(name), etag)

    async def abort(self) -> None:
        """Drop the parts of uploads that were not completed. The store's lifecycle drops them if this fails."""
        for name, upload in self.uploads.items():
            try:
                await self.store.abort_upload(name, upload)
            except StoreError:
                break
        self.uploads.clear()
