"""One shared watch over the pods of the pool: list, watch, list again when in doubt.

Lives as long as the agent. Sessions wait on their pod's `Watched` instead of asking the API, so a running action costs
no request. A watch never says that it lost an event, so its end, a 410 and every doubt lead to a new list, and what the
list lacks is told as deleted. Objects are kept as the few fields that anyone reads.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog

from agent.cluster.names import pool_selector
from agent.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.client import Client
    from agent.metrics import Metrics

Object = dict[str, Any]
log = structlog.get_logger(__name__)

SERVER_TIMEOUT = (240, 290)
CONNECT_TIMEOUT = 10.0
STEADY = 5.0


class Watched:
    """What is known of one pod. `pod` is None before it exists and after it is gone; `version` counts what was told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pod: Object | None = None
        self.version = 0
        self.told = asyncio.Event()

    def tell(self, pod: Object | None) -> None:
        """Take the newest state and wake who waits."""
        self.pod = pod
        self.version += 1
        told, self.told = self.told, asyncio.Event()
        told.set()

    async def change(self, seen: int, timeout: float | None = None) -> None:
        """Wait until more was told than version `seen`, or the time is over."""
        if self.version != seen:
            return
        try:
            async with asyncio.timeout(timeout):
                await self.told.wait()
        except TimeoutError:
            return


class PodWatch:
    """The pods of a pool as the API last told them."""

    def __init__(self, client: Client, namespace: str, pool: str, metrics: Metrics) -> None:
        self.client = client
        self.path = f"/api/v1/namespaces/{namespace}/pods"
        self.query = {"labelSelector": pool_selector(pool)}
        self.metrics = metrics
        self.pods: dict[str, Object] = {}
        self.watched: dict[str, Watched] = {}
        self.synced = asyncio.Event()
        self.failures = 0

    def watch(self, name: str) -> Watched:
        """Start to follow one pod by its name; end with `forget`."""
        watched = self.watched.setdefault(name, Watched(name))
        if name in self.pods:
            watched.tell(self.pods[name])
        return watched

    def forget(self, name: str) -> None:
        """Stop to follow one pod."""
        self.watched.pop(name, None)

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
                    log.warning("the watch over pods broke and is opened again", error=error.message)
                self.failures += 1
            # Full jitter, so that replicas do not list in step after an outage.
            await asyncio.sleep(random.uniform(0, min(10.0, 0.2 * 2 ** min(self.failures, 10))))  # noqa: S311

    async def list(self) -> str:
        """Read all pods, tell what changed and what is gone; returns the version to watch from."""
        # A pod created while the list is under way may be missing from it: only what was known before can be gone.
        before = dict(self.pods)
        answer = await self.client.request("list", "pods", self.path, query=self.query)
        found = {pod["metadata"]["name"]: pod for pod in answer.get("items", ())}
        for name in before.keys() - found.keys():
            self.take("DELETED", before[name])
        for pod in found.values():
            self.take("MODIFIED", pod)
        return str(answer["metadata"]["resourceVersion"])

    async def follow(self, version: str) -> str:
        """Watch from a version until the server ends it; returns the last version, or "" when a list is needed."""
        seconds = random.randint(*SERVER_TIMEOUT)  # noqa: S311 - spreads load, guards nothing
        query = self.query | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
        }
        timeout = aiohttp.ClientTimeout(total=seconds + 30, sock_connect=CONNECT_TIMEOUT, sock_read=seconds + 15)
        try:
            async with self.client.stream("watch", "pods", self.path, query=query, timeout=timeout) as response:
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
            log.info("the watch over pods was cut", error=repr(error))
            return ""
        return version

    def take(self, kind: str, pod: Object) -> None:
        """Note one event and tell who follows the pod."""
        pod = slim(pod)
        name = pod["metadata"]["name"]
        known = self.pods.get(name)
        if kind == "DELETED":
            if known is None or known["metadata"]["uid"] != pod["metadata"]["uid"]:
                return
            del self.pods[name]
        else:
            if known is not None and older(pod, known):
                return
            self.pods[name] = pod
        if name in self.watched:
            self.watched[name].tell(self.pods.get(name))


async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the lines of a body of any line length."""
    rest = b""
    async for data in response.content.iter_any():
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            if line:
                yield line


def older(pod: Object, known: Object) -> bool:
    """Whether `pod` is an earlier state of the same object than `known`, as when a list was served from a cache."""
    if pod["metadata"]["uid"] != known["metadata"]["uid"]:
        return False
    return int(pod["metadata"]["resourceVersion"]) < int(known["metadata"]["resourceVersion"])


KEPT = ("name", "uid", "resourceVersion", "labels", "annotations", "creationTimestamp", "deletionTimestamp")


def slim(pod: Object) -> Object:
    """Keep the fields that are read: a pod is 10 KiB, of which one is enough."""
    metadata = pod["metadata"]
    return {
        "metadata": {
            key: metadata[key] for key in (*KEPT, "deletionGracePeriodSeconds") if metadata.get(key) is not None
        },
        "spec": {"nodeName": pod.get("spec", {}).get("nodeName")},
        "status": pod.get("status", {}),
    }
