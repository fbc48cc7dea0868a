"""The part of `ObjectStore` that caches use, over the scripted HTTP server of `object_store`.

The bytes of archives go through the HTTP server, as in a pod. Small requests work on its objects directly.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from agent.objects.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.fakes.object_store import FakeStore

PREFIX = "sealci"


class CacheObjects:
    """`faults` holds the status of the next small requests, None for a normal answer. `requests` are those sent.

    The time of an object is its place in the order of writes. `conditional`: the store knows If-None-Match.
    `unordered`: names are not listed in the order of the alphabet.
    """

    def __init__(self, fake: FakeStore) -> None:
        self.fake = fake
        self.settings = SimpleNamespace(prefix=PREFIX)
        self.ca = ""
        self.conditional, self.unordered = True, False
        self.faults: deque[int | None] = deque()
        self.requests: list[str] = []

    @staticmethod
    def path(name: str) -> str:
        return f"/{quote(name)}?"

    @property
    def objects(self) -> dict[str, bytes]:
        return {unquote(path[1:-1]): data for path, data in self.fake.objects.items()}

    def write(self, name: str, data: bytes) -> None:
        self.fake.objects[self.path(name)] = data

    def uri(self, name: str) -> str:
        return f"s3://bucket/{name}"

    async def credentials(self) -> None:
        return None

    def sign(self, _: object, method: str, name: str, **options: object) -> str:
        return f"{self.fake.url}{self.path(name)}"

    async def request(
        self,
        method: str,
        name: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[dict[str, str], bytes]:
        self.requests.append(f"{method} {name}")
        status = self.faults.popleft() if self.faults else None
        if status is not None:
            raise StoreError(f"HTTP {status}", status=status, retryable=status >= 500)
        if query:
            return {}, self.listed(query)
        answer = self.objects.get(name, b"")
        self.carry_out(method, name, headers, body)
        return {}, answer

    def carry_out(self, method: str, name: str, headers: Mapping[str, str] | None, body: bytes) -> None:
        if method == "PUT":
            if headers and not self.conditional:
                raise StoreError("HTTP 501", status=501)
            if headers and name in self.objects:
                raise StoreError("HTTP 412", status=412)
            self.write(name, body)
        elif method == "DELETE":
            self.fake.objects.pop(self.path(name), None)
        elif name not in self.objects:
            raise StoreError("HTTP 404", status=404)

    def listed(self, query: Mapping[str, str]) -> bytes:
        """Return one page of a list. The continuation token is the number of names before the page."""
        found = (name for name in self.objects if name.startswith(query["prefix"]))
        names = sorted(found, reverse=self.unordered)
        if self.unordered:
            names.sort(key=lambda name: "/key/" in name)
        start, size = int(query.get("continuation-token") or 0), int(query["max-keys"])
        order = list(self.objects)
        rows = "".join(
            f"<Contents><Key>{name}</Key><Size>{len(self.objects[name])}</Size>"
            f"<LastModified>2026-11-27T00:{order.index(name):02d}:00.000Z</LastModified></Contents>"
            for name in names[start : start + size]
        )
        more = start + size < len(names)
        token = f"<NextContinuationToken>{start + size}</NextContinuationToken>" if more else ""
        return f"<L>{rows}<IsTruncated>{str(more).lower()}</IsTruncated>{token}</L>".encode()
