"""One shared watch over the pods of the pool. The watch lives as long as the agent.

Each session waits on the `PodState` of its pod instead of polling the API server, so a running action costs no request.
The watch also receives the pods of all other agents of the pool. For the pods of other agents, the watch decodes only
the head of an event until a caller reads the pod. More replicas therefore do not slow each agent down.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING

from agent.cluster.api.reflector import Reflector
from agent.cluster.pod.labels import ACTION, AGENT, ATTEMPT, action_hash, pool_selector
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent.cluster.api.client import Client
    from agent.telemetry.metrics import Metrics

# Key under which an object keeps the raw line of its watch event, if only the head of the line was decoded.
UNREAD = "unread"
# The head of an event as the API server writes it: the fields in this order, without spaces.
HEAD = re.compile(
    rb'\{"type":"(ADDED|MODIFIED|DELETED)","object":\{"kind":"Pod","apiVersion":"v1","metadata":\{'
    rb'"name":"([-.a-z0-9]+)","namespace":"[-a-z0-9]+","uid":"([-0-9A-Za-z]+)","resourceVersion":"(\d+)"'
)
# The label with the id of the owning agent. JSON escapes quotes in strings, so no text of a user matches.
OWNER_LABEL = re.compile(rb'"%b":"([-.0-9A-Za-z_]+)"' % re.escape(AGENT.encode()))
# The fields of `metadata` that the agent reads.
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


class PodState:
    """The newest state of one pod. Owned by the watch, from `PodWatch.watch` to `PodWatch.forget`.

    `pod` is None before the pod exists and after its end. `last` is then the state in which the pod ended, or None if
    the watch missed the end. `version` counts the updates.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.pod: Object | None = None
        self.last: Object | None = None
        self.version = 0
        self.changed = asyncio.Event()

    def update(self, pod: Object | None, last: Object | None = None) -> None:
        """Store the newest state and wake all waiting tasks."""
        self.pod, self.last = pod, last
        self.version += 1
        # Each update gets a new event, so that no task waits for an event that is already set.
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def wait_for_change(self, version: int, timeout: float | None = None) -> None:
        """Wait until `self.version` differs from `version`, at most `timeout` seconds."""
        if self.version != version:
            return
        try:
            async with asyncio.timeout(timeout):
                await self.changed.wait()
        except TimeoutError:
            return


class PodWatch(Reflector):
    """The pods of a pool as the API server last reported them. Owned by the application, lives as long as the agent.

    `on_change` is called with each pod that was added or modified.
    """

    def __init__(
        self,
        client: Client,
        namespace: str,
        pool: str,
        metrics: Metrics,
        agent_id: str = "",
        *,
        on_change: Callable[[Object], None] = lambda _: None,
    ) -> None:
        path = f"/api/v1/namespaces/{namespace}/pods"
        super().__init__(client, "pods", path, pool_selector(pool), metrics)
        self.own_id = agent_id.encode()
        self.on_change = on_change
        self._watched: dict[str, PodState] = {}

    @property
    def pods(self) -> dict[str, Object]:
        """Return all pods by name, each fully decoded."""
        for name in self.objects:
            self.read(name)
        return self.objects

    def read(self, name: str) -> Object | None:
        """Return one pod, fully decoded, or None if the watch does not show such a pod."""
        found = self.objects.get(name)
        if found is not None and UNREAD in found:
            found = self.objects[name] = self.prune_fields(json.loads(found[UNREAD])["object"])
        return found

    def find_other_pod(self, action_id: str, attempt: int) -> str:
        """Return the name of another agent's pod that runs this attempt, "" if the watch shows none."""
        wanted = {ACTION: action_hash(action_id), ATTEMPT: str(attempt)}
        part = f'"{ACTION}":"{wanted[ACTION]}"'.encode()
        for name, found in list(self.objects.items()):
            pod = self.read(name) if UNREAD not in found or part in found[UNREAD] else None
            labels = pod["metadata"].get("labels", {}) if pod else {}
            if wanted.items() <= labels.items() and labels.get(AGENT, "").encode() != self.own_id:
                return name
        return ""

    def watch(self, name: str) -> PodState:
        """Return the state of the pod with this name, updated until `forget`."""
        state = self._watched.setdefault(name, PodState(name))
        if (pod := self.read(name)) is not None:
            state.update(pod)
        return state

    def watched_pods(self) -> Iterator[Object]:
        """Yield the newest state of each pod that exists and has a state by `watch`."""
        return (state.pod for state in self._watched.values() if state.pod is not None)

    def is_watched(self, name: str) -> bool:
        return name in self._watched

    def forget(self, name: str) -> None:
        """Stop updating the state that `watch` returned."""
        self._watched.pop(name, None)

    def parse_event(self, line: bytes) -> Object:
        """Decode a watch event. Of a pod that another agent owns and no session watches, decode only the head.

        An event that is not laid out as `HEAD` expects is decoded completely.
        """
        if (
            self.own_id
            and self.own_id not in line
            and (head := HEAD.match(line))
            and (agent := OWNER_LABEL.search(line))
        ):
            kind, name, uid, version = (part.decode() for part in head.groups())
            if name not in self._watched:
                labels = {AGENT: agent[1].decode()}
                metadata = {"name": name, "uid": uid, "resourceVersion": version, "labels": labels}
                return {"type": kind, "object": {"metadata": metadata, UNREAD: line}}
        return super().parse_event(line)

    def prune_fields(self, found: Object) -> Object:
        """Keep only the fields that the agent reads: about 1 KiB of a pod object's 10 KiB."""
        if UNREAD in found:
            return found
        metadata = found["metadata"]
        return {
            "metadata": {key: metadata[key] for key in KEPT if metadata.get(key) is not None},
            "spec": {"nodeName": found.get("spec", {}).get("nodeName")},
            "status": found.get("status", {}),
        }

    def on_update(self, name: str, found: Object | None) -> None:
        if name in self._watched:
            self._watched[name].update(found)
        if found is not None:
            self.on_change(found)

    def on_delete(self, name: str, last: Object | None) -> None:
        if name in self._watched:
            self._watched[name].update(None, last)
