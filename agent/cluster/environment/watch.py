"""One shared watch over the pods of the pool.

Lives as long as the agent. Sessions wait on their pod's `Watched` instead of asking the API, so a running action costs
no request. Each agent is told of the pods of all: of another's no more is read than who it is and whose, until somebody
asks, so that an agent does not become slower with each replica beside it.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

from agent.cluster.api.reflector import Reflector
from agent.cluster.pod.labels import AGENT, pool_selector
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.api.client import Client
    from agent.telemetry.metrics import Metrics


class Watched:
    """What is known of one pod.

    `pod` is None before it exists and after it is gone; `last` is then the state in which it went, None when nobody saw
    it go. `version` counts what was told.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.pod: Object | None = None
        self.last: Object | None = None
        self.version = 0
        self.told = asyncio.Event()

    def tell(self, pod: Object | None, last: Object | None = None) -> None:
        """Take the newest state and wake who waits."""
        self.pod, self.last = pod, last
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


class PodWatch(Reflector):
    """The pods of a pool as the API last told them. `on_change` is told of every pod that is not gone."""

    def __init__(self, client: Client, namespace: str, pool: str, metrics: Metrics, agent_id: str = "") -> None:
        path = f"/api/v1/namespaces/{namespace}/pods"
        super().__init__(client, "pods", path, pool_selector(pool), metrics)
        self.own = agent_id.encode()
        self.watched: dict[str, Watched] = {}
        self.on_change: Callable[[Object], None] = lambda pod: None

    @property
    def pods(self) -> dict[str, Object]:
        """All pods that are known, by name."""
        for name in self.objects:
            self.read(name)
        return self.objects

    def read(self, name: str) -> Object | None:
        """Return what is known of one pod."""
        found = self.objects.get(name)
        if found is not None and UNREAD in found:
            found = self.objects[name] = self.prune_fields(json.loads(found[UNREAD])["object"])
        return found

    def watch(self, name: str) -> Watched:
        """Start to follow one pod by its name; end with `forget`."""
        watched = self.watched.setdefault(name, Watched(name))
        if (known := self.read(name)) is not None:
            watched.tell(known)
        return watched

    def forget(self, name: str) -> None:
        """Stop to follow one pod."""
        self.watched.pop(name, None)

    def parse_event(self, line: bytes) -> Object:
        """Read an event; of a pod that another agent drives only its head, as far as it is written as usual."""
        if self.own and self.own not in line and (head := HEAD.match(line)) and (agent := DRIVER.search(line)):
            kind, name, uid, version = (part.decode() for part in head.groups())
            if name not in self.watched:
                labels = {AGENT: agent[1].decode()}
                metadata = {"name": name, "uid": uid, "resourceVersion": version, "labels": labels}
                return {"type": kind, "object": {"metadata": metadata, UNREAD: line}}
        return super().parse_event(line)

    def prune_fields(self, found: Object) -> Object:
        """Keep the fields that are read: a pod is 10 KiB, of which one is enough."""
        if UNREAD in found:
            return found
        metadata = found["metadata"]
        return {
            "metadata": {key: metadata[key] for key in KEPT if metadata.get(key) is not None},
            "spec": {"nodeName": found.get("spec", {}).get("nodeName")},
            "status": found.get("status", {}),
        }

    def on_update(self, name: str, found: Object | None) -> None:
        """Tell who follows the pod."""
        if name in self.watched:
            self.watched[name].tell(found)
        if found is not None:
            self.on_change(found)

    def on_delete(self, name: str, last: Object | None) -> None:
        """Tell who follows the pod, with the state in which it went."""
        if name in self.watched:
            self.watched[name].tell(None, last)


# The line of an event that was not read further than its head.
UNREAD = "unread"
# As the API server writes it: fields in this order and nothing between them. What looks different is read as a whole.
HEAD = re.compile(
    rb'\{"type":"(ADDED|MODIFIED|DELETED)","object":\{"kind":"Pod","apiVersion":"v1","metadata":\{'
    rb'"name":"([-.a-z0-9]+)","namespace":"[-a-z0-9]+","uid":"([-0-9A-Za-z]+)","resourceVersion":"(\d+)"'
)
# A quote within a text is escaped, so that no text can look like this.
DRIVER = re.compile(rb'"%b":"([-.0-9A-Za-z_]+)"' % re.escape(AGENT.encode()))
KEPT = (
    "name",
    "uid",
    "resourceVersion",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
)
