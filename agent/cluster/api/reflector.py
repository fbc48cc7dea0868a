"""The current state of some API objects in memory: list them, watch them, and list again when in doubt.

A reflector lives as long as the agent. The API server does not report an event that a watch has lost. A new list
therefore follows when a watch ends early, with a 410 (the version is too old), or breaks. An object that is missing
from a list counts as deleted. A subclass chooses the fields of an object that are kept.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING

import aiohttp
import structlog

from agent.backoff import Backoff
from agent.domain.errors import ClusterError
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

# Seconds to wait for the API server after the requested end of a watch. Then the agent ends the watch itself.
OVERTIME = 30
# Maximum number of deleted UIDs to remember. Later events about these UIDs are ignored.
DELETED_UIDS_KEPT = 1000


class Reflector:
    """The last known state of the objects of one kind and selector, by name. Its owner runs `run` as a task."""

    def __init__(self, client: Client, resource: str, path: str, selector: str, metrics: Metrics) -> None:
        self.client = client
        self.resource = resource
        self.path = path
        self.query = {"labelSelector": selector}
        self.metrics = metrics
        self.objects: dict[str, Object] = {}
        self.synced = asyncio.Event()
        self.deleted_uids: dict[str, None] = {}
        # Full jitter spreads the pauses, so that the replicas do not all list at the same time after an outage.
        self.backoff = Backoff(client.timings.watch_pause, client.timings.longest_watch_pause)
        self.trouble = ""
        self.silence = client.timings.watch_silence

    def parse_event(self, line: bytes) -> Object:
        """Return the event that one line of a watch holds."""
        event: Object = json.loads(line)
        return event

    def prune_fields(self, found: Object) -> Object:
        """Return the fields of an object that the reflector keeps in memory."""
        return found

    def on_update(self, name: str, found: Object | None) -> None:
        """Act on a change of an object. `found` is None if the object was deleted."""

    def on_delete(self, name: str, last: Object | None) -> None:  # noqa: ARG002 - a hook that subclasses override
        """Act on a deletion. `last` is the object's last state, or None if the object was only missing from a list."""
        self.on_update(name, None)

    async def run(self) -> None:
        """Keep `objects` current until cancelled."""
        timings = self.client.timings
        while True:
            retry_after = 0.0
            try:
                listed = time.monotonic()
                version = await self.list()
                self.synced.set()
                while version:
                    began = time.monotonic()
                    version = await self.follow(version)
                    self.metrics.watch_restarts.inc()
                    if time.monotonic() - began < timings.watch_steady:
                        break
                    self.backoff.reset()
                    if time.monotonic() - listed > timings.watch_relist:
                        break
            except ClusterError as error:
                if self.backoff.failures == 0:
                    log.warning("a watch failed and is opened again", resource=self.resource, error=error.message)
                self.trouble = error.message if self.backoff.failures else ""
                retry_after = min(error.retry_after or 0.0, timings.longest_retry_after)
            # The pause also follows a watch that the server ended at once, so that the agent does not list in a tight
            # loop.
            await asyncio.sleep(retry_after + self.backoff.next())

    async def list(self) -> str:
        """Read all objects and apply the differences to `objects`. Return the version from which to watch."""
        # The list may lack an object that is created during the list. Only an object that was known before the list can
        # count as deleted.
        before = dict(self.objects)
        answer = await self.client.request("list", self.resource, self.path, query=self.query)
        version = answer.get("metadata", {}).get("resourceVersion")
        if not version:
            raise ClusterError(f"list {self.resource}: the answer is not a list", retryable=True)
        found = {each["metadata"]["name"]: each for each in answer.get("items", ())}
        for name in before.keys() - found.keys():
            self.delete(before[name], None)
        for each in found.values():
            self.apply_event("MODIFIED", each)
        return str(version)

    async def follow(self, version: str) -> str:
        """Watch from a resource version until the server ends the watch.

        Return the last resource version, or "" if the caller must list the objects again.
        """
        timings = self.client.timings
        seconds = random.randint(*timings.watch_duration)  # noqa: S311 - spreads load, guards nothing
        query = self.query | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(
            total=seconds + OVERTIME, sock_connect=timings.watch_connect, sock_read=self.silence
        )
        try:
            async with self.client.stream("watch", self.resource, self.path, query=query, timeout=timeout) as response:
                self.trouble = ""
                async for line in self.lines(response):
                    event = self.parse_event(line)
                    if event["type"] == "ERROR":
                        return ""
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self.apply_event(event["type"], event["object"])
        except ClusterError as error:
            if error.status == 410:
                return ""
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.info("a watch broke off", resource=self.resource, error=repr(error))
            return ""
        except (ValueError, KeyError):
            # Neither an API server nor a broken connection causes an unreadable event, so this is a fault of the agent
            # or of a proxy.
            self.metrics.internal_errors.labels("watch").inc()
            log.exception("an event of a watch could not be read", resource=self.resource)
            return ""
        return version

    async def lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield the lines of a watch, of any length. Bytes that never complete a line count as silence.

        Raises:
            TimeoutError: no line was completed within `silence` seconds.
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

    def apply_event(self, kind: str, found: Object) -> None:
        """Apply one event of a watch, or one item of a list, to `objects`. `kind` is the type of the event."""
        found = self.prune_fields(found)
        name, uid = found["metadata"]["name"], found["metadata"]["uid"]
        if kind == "DELETED":
            self.deleted_uids[uid] = None
            while len(self.deleted_uids) > DELETED_UIDS_KEPT:
                del self.deleted_uids[next(iter(self.deleted_uids))]
            self.delete(found, found)
            return
        known = self.objects.get(name)
        if uid in self.deleted_uids or (known is not None and older(found, known)):
            return
        self.objects[name] = found
        self.on_update(name, found)

    def delete(self, found: Object, last: Object | None) -> None:
        """Remove a deleted object, unless a new object has the same name.

        `last` is the object's last state, None if it is unknown.
        """
        name = found["metadata"]["name"]
        known = self.objects.get(name)
        if known is not None and known["metadata"]["uid"] == found["metadata"]["uid"]:
            del self.objects[name]
            self.on_delete(name, last)


def older(found: Object, known: Object) -> bool:
    """Return whether `found` is an earlier state than `known`.

    A list that comes from a cache may contain an earlier state. `found` may also be a deleted object of the same name.
    A watch may report the last states of the deleted object after the new object.
    """
    return int(found["metadata"]["resourceVersion"]) < int(known["metadata"]["resourceVersion"])
