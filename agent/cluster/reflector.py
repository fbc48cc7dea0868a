"""List, watch, list again when in doubt: what the API says of some objects, kept current.

A reflector lives as long as the agent. A watch never says that it lost an event, so its end, a 410 and every doubt lead
to a new list, and what the list lacks is told as deleted. Objects are kept as the few fields that anyone reads.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog

from agent.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.client import Client
    from agent.metrics import Metrics

Object = dict[str, Any]
log = structlog.get_logger(__name__)

SERVER_TIMEOUT = (240, 290)
CONNECT_TIMEOUT = 10.0
# Bookmarks come about every minute: a watch that is silent for longer is dead.
SILENCE = 100.0
STEADY = 1.0


class Reflector:
    """The objects of a kind and selector as the API last told them, by name."""

    def __init__(self, client: Client, resource: str, path: str, selector: str, metrics: Metrics) -> None:
        self.client = client
        self.resource = resource
        self.path = path
        self.query = {"labelSelector": selector}
        self.metrics = metrics
        self.objects: dict[str, Object] = {}
        self.synced = asyncio.Event()
        self.failures = 0
        self.silence = SILENCE

    def slim(self, found: Object) -> Object:
        """Return what is kept of an object."""
        return found

    def noted(self, name: str, found: Object | None) -> None:
        """Act on a change; None when the object is gone."""

    def removed(self, name: str, last: Object | None) -> None:
        """Act on the end of an object; `last` is its last state, None when only its absence was seen."""
        self.noted(name, None)

    async def run(self) -> None:
        """Keep the picture current until cancelled."""
        while True:
            try:
                version = await self.list()
                self.synced.set()
                while version:
                    began = time.monotonic()
                    version = await self.follow(version)
                    self.metrics.watch_restarts.inc()
                    if time.monotonic() - began < STEADY:
                        break
                    self.failures = 0
                # Whoever ends watches as soon as they are opened is not asked in a tight loop.
                self.failures += 1
            except ClusterError as error:
                if self.failures == 0:
                    log.warning("a watch broke and is opened again", resource=self.resource, error=error.message)
                self.failures += 1
            # Full jitter, so that replicas do not list in step after an outage.
            await asyncio.sleep(random.uniform(0, min(10.0, 0.2 * 2 ** min(self.failures, 10))))  # noqa: S311

    async def list(self) -> str:
        """Read all objects, tell what changed and what is gone; returns the version to watch from."""
        # An object created while the list is under way may be missing from it: only what was known before can be gone.
        before = dict(self.objects)
        answer = await self.client.request("list", self.resource, self.path, query=self.query)
        found = {each["metadata"]["name"]: each for each in answer.get("items", ())}
        for name in before.keys() - found.keys():
            self.take("MISSING", before[name])
        for each in found.values():
            self.take("MODIFIED", each)
        version = answer.get("metadata", {}).get("resourceVersion")
        if not version:
            raise ClusterError(f"list {self.resource}: the answer is no list", retryable=True)
        return str(version)

    async def follow(self, version: str) -> str:
        """Watch from a version until the server ends it; returns the last version, or "" when a list is needed."""
        seconds = random.randint(*SERVER_TIMEOUT)  # noqa: S311 - spreads load, guards nothing
        query = self.query | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(total=seconds + 30, sock_connect=CONNECT_TIMEOUT, sock_read=self.silence)
        try:
            async with self.client.stream("watch", self.resource, self.path, query=query, timeout=timeout) as response:
                async for line in lines(response):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return ""
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self.take(event["type"], event["object"])
        except ClusterError as error:
            if error.status == 410:
                return ""
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError) as error:
            log.info("a watch was cut", resource=self.resource, error=repr(error))
            return ""
        return version

    def take(self, kind: str, found: Object) -> None:
        """Note one event."""
        found = self.slim(found)
        name = found["metadata"]["name"]
        known = self.objects.get(name)
        if kind in ("DELETED", "MISSING"):
            if known is None or known["metadata"]["uid"] != found["metadata"]["uid"]:
                return
            del self.objects[name]
            self.removed(name, found if kind == "DELETED" else None)
        else:
            if known is not None and older(found, known):
                return
            self.objects[name] = found
            self.noted(name, found)


async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a body of any line length."""
    rest = b""
    async for data in response.content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if line:
                yield line


def older(found: Object, known: Object) -> bool:
    """Whether `found` is an earlier state of the same object than `known`, as when a list was served from a cache."""
    if found["metadata"]["uid"] != known["metadata"]["uid"]:
        return False
    return int(found["metadata"]["resourceVersion"]) < int(known["metadata"]["resourceVersion"])
