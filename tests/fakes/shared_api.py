"""A FakeApi that several agents share. It also has Leases, and pods that an agent claims by an optimistic lock.

A SharedApi lives as long as a test.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from agent.cluster.packaging import LOG_FOLDER
from agent.domain.json import Object
from tests.fakes.answers import failed
from tests.fakes.api import PODS, FakeApi
from tests.fakes.warm_helper import Step, WarmHelper, no_step

if TYPE_CHECKING:
    from collections.abc import Mapping

BOTH = ("helper", "action")
STARTED = "2026-11-24T08:00:00Z"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


@dataclass(eq=False)
class SharedApi(FakeApi):
    """A fake API server that several agents share. `leases` holds the Leases by name."""

    leases: dict[str, Object] = field(default_factory=dict)
    # The helpers of warm pods by the name of the pod.
    warm: dict[str, WarmHelper] = field(default_factory=dict)
    warm_step: Step = no_step

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lease_events: list[tuple[int, Object]] = []

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_patch(f"{PODS}/{{name}}", self.on_patch_pod)
        router.add_get(LEASES, self.on_list_leases)
        router.add_post(LEASES, self.on_create_lease)
        router.add_patch(f"{LEASES}/{{name}}", self.on_patch_lease)
        router.add_delete(f"{LEASES}/{{name}}", self.on_delete_lease)

    async def on_patch_pod(self, request: web.Request) -> web.Response:
        """Merge a patch into a pod. Answer 409 if the patch names another resource version than the pod has."""
        pod, body = self.pods.get(request.match_info["name"]), await request.json()
        if pod is None:
            return failed(404, "not found")
        if stale(pod, body):
            return failed(409, "the object has been modified")
        return web.json_response(await self.put(merged(pod, body)))

    async def on_exec(self, request: web.Request) -> web.StreamResponse:
        """Answer an exec. The errand that delivers orders speaks with the pod's WarmHelper."""
        name = request.match_info["name"]
        if request.query.getall("command")[-1] != LOG_FOLDER:
            return await super().on_exec(request)
        if name not in self.pods:
            return failed(404, f'pods "{name}" not found')
        return await self.warm_helper(name).serve(request)

    def warm_helper(self, name: str) -> WarmHelper:
        """Return the helper of a warm pod."""
        return self.warm.setdefault(name, WarmHelper(name, self.warm_step))

    async def run_idle(self, name: str) -> None:
        """Start both containers of a warm pod."""
        states = [{"name": each, "started": True, "state": {"running": {"startedAt": STARTED}}} for each in BOTH]
        await self.status(name, phase="Running", startTime=STARTED, containerStatuses=states)

    async def on_list_leases(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self.on_watch(request, self.lease_events)
        return web.json_response(
            {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.leases.values())}
        )

    async def on_create_lease(self, request: web.Request) -> web.Response:
        lease = await request.json()
        if lease["metadata"]["name"] in self.leases:
            return failed(409, "already exists")
        lease["metadata"]["uid"] = f"uid-{self.version}"
        return web.json_response(await self.put_lease(lease, "ADDED"), status=201)

    async def on_patch_lease(self, request: web.Request) -> web.Response:
        lease = self.leases.get(request.match_info["name"])
        if lease is None:
            return failed(404, "not found")
        return web.json_response(await self.put_lease(merged(lease, await request.json())))

    async def on_delete_lease(self, request: web.Request) -> web.Response:
        lease = self.leases.get(request.match_info["name"])
        if lease is None:
            return failed(404, "not found")
        body = await request.json() if request.can_read_body else {}
        if any(lease["metadata"][key] != value for key, value in body.get("preconditions", {}).items()):
            return failed(409, "the object has been modified")
        return web.json_response(await self.put_lease(deepcopy(lease), "DELETED"))

    async def put_lease(self, lease: Object, kind: str = "MODIFIED") -> Object:
        """Store a Lease with a new resource version, and send an event of the type `kind` to the watches."""
        self.version += 1
        name = lease["metadata"]["name"]
        lease["metadata"]["resourceVersion"] = str(self.version)
        self.leases[name] = lease
        if kind == "DELETED":
            del self.leases[name]
        self.lease_events.append((self.version, {"type": kind, "object": deepcopy(lease)}))
        await self.notify()
        return lease


def stale(found: Object, patch: Object) -> bool:
    """Return whether `patch` names another resource version than the object `found` has."""
    version = found["metadata"]["resourceVersion"]
    return bool(patch.get("metadata", {}).get("resourceVersion", version) != version)


def merged(found: Mapping[str, Any], patch: Mapping[str, Any]) -> Object:
    """Return a copy of the object `found` with the merge patch `patch` applied."""
    result = deepcopy(dict(found))
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = value
    return result
