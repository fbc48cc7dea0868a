"""List, watch, list again when in doubt: what the API says of some objects, kept current.

A reflector lives as long as the agent. A watch never says that it lost an event, so its end, a 410 and every doubt lead
to a new list, and what the list lacks is told as deleted. Objects are kept as the few fields that anyone reads.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING

import aiohttp
import structlog

from agent.domain.backoff import Backoff
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

SERVER_TIMEOUT = (240, 290)
CONNECT_TIMEOUT = 10.0
# Bookmarks come about every minute: a watch that is silent for longer is dead.
SILENCE = 100.0
STEADY = 1.0
# No server is believed to tell everything for longer than this: then all is listed again.
RELIST = 240.0
FIRST_PAUSE = 0.4
LONGEST_BACKOFF = 10.0
LONGEST_PAUSE = 60.0
# So many objects that a watch has told as deleted are remembered: what comes late of them is no news.
GONE = 1000


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
        self.gone: dict[str, None] = {}
        # Full jitter, so that replicas do not list in step after an outage.
        self.backoff = Backoff(FIRST_PAUSE, LONGEST_BACKOFF)
        self.trouble = ""
        self.silence = SILENCE

    def event(self, line: bytes) -> Object:
        """Read an event of a watch."""
        event: Object = json.loads(line)
        return event

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
            asked = 0.0
            try:
                listed = time.monotonic()
                version = await self.list()
                self.synced.set()
                while version:
                    began = time.monotonic()
                    version = await self.follow(version)
                    self.metrics.watch_restarts.inc()
                    if time.monotonic() - began < STEADY:
                        break
                    self.backoff.reset()
                    if time.monotonic() - listed > RELIST:
                        break
            except ClusterError as error:
                if self.backoff.failures == 0:
                    log.warning("a watch broke and is opened again", resource=self.resource, error=error.message)
                self.trouble = error.message if self.backoff.failures else ""
                asked = min(error.retry_after or 0.0, LONGEST_PAUSE)
            # Also after a watch that the server ended at once, so that the server is not asked in a tight loop.
            await asyncio.sleep(asked + self.backoff.next())

    async def list(self) -> str:
        """Read all objects, tell what changed and what is gone; returns the version to watch from."""
        # An object created while the list is under way may be missing from it: only what was known before can be gone.
        before = dict(self.objects)
        answer = await self.client.request("list", self.resource, self.path, query=self.query)
        version = answer.get("metadata", {}).get("resourceVersion")
        if not version:
            raise ClusterError(f"list {self.resource}: the answer is no list", retryable=True)
        found = {each["metadata"]["name"]: each for each in answer.get("items", ())}
        for name in before.keys() - found.keys():
            self.lose(before[name], None)
        for each in found.values():
            self.take("MODIFIED", each)
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
                self.trouble = ""
                async for line in self.lines(response):
                    event = self.event(line)
                    if event["type"] == "ERROR":
                        return ""
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self.take(event["type"], event["object"])
        except ClusterError as error:
            if error.status == 410:
                return ""
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.info("a watch was cut", resource=self.resource, error=repr(error))
            return ""
        except (ValueError, KeyError):
            # Neither an API server nor a cut connection produces an unreadable event: a defect here or in a proxy does.
            self.metrics.internal_errors.labels("watch").inc()
            log.exception("an event of a watch could not be read", resource=self.resource)
            return ""
        return version

    async def lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, of any length; bytes that never become one are silence too.

        Raises:
            TimeoutError: none came in time.
        """
        rest, ended = b"", False
        while not ended:
            whole: list[bytes] = []
            async with asyncio.timeout(self.silence):
                while not whole and not ended:
                    data = await response.content.readany()
                    ended = not data
                    *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                if line:
                    yield line

    def take(self, kind: str, found: Object) -> None:
        """Note one event."""
        found = self.slim(found)
        name, uid = found["metadata"]["name"], found["metadata"]["uid"]
        if kind == "DELETED":
            self.gone[uid] = None
            while len(self.gone) > GONE:
                del self.gone[next(iter(self.gone))]
            self.lose(found, found)
            return
        known = self.objects.get(name)
        if uid in self.gone or (known is not None and older(found, known)):
            return
        self.objects[name] = found
        self.noted(name, found)

    def lose(self, found: Object, last: Object | None) -> None:
        """Forget an object that is there no more, unless another has its name; `last` as in `removed`."""
        name = found["metadata"]["name"]
        known = self.objects.get(name)
        if known is not None and known["metadata"]["uid"] == found["metadata"]["uid"]:
            del self.objects[name]
            self.removed(name, last)


def older(found: Object, known: Object) -> bool:
    """Whether `found` is an earlier state than `known`, as when a list was served from a cache.

    Also of another object that had the name before: a watch may tell of its last states after the new one was created.
    """
    return int(found["metadata"]["resourceVersion"]) < int(known["metadata"]["resourceVersion"])
