"""A Kubernetes API server for tests: creates, lists, watches and deletes pods over real HTTP on loopback.

A FakeApi lives as long as a test. Its state is a dict of pods and a resource version that grows. A test changes the
behaviour: `answer` replaces answers, `slow_removal` delays deletions, `cut` ends all watches. Tests wait with `until`
and never sleep.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import asynccontextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from agent.cluster.api.client import Client
from agent.cluster.api.timings import ApiTimings
from agent.cluster.packaging import LOG_FOLDER
from agent.cluster.pod.session_annotation import log_key_of
from agent.domain.json import Object
from agent.settings import ClusterSettings
from agent.telemetry.metrics import Metrics
from tests.fakes.answers import HANG, Request, Scripted, failed, status_text
from tests.fakes.helper_log import HelperLog, serve_errand
from tests.fakes.waiting import Changing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# A pair of a resource version and an event, as a watch sends the event.
WatchEvent = tuple[int, Object]
__all__ = ["HANG", "PODS", "FakeApi", "Request", "Scripted", "failed", "pod_of", "status_text"]

PODS = "/api/v1/namespaces/{namespace}/pods"


@dataclass(eq=False)
class FakeApi(Changing):
    """A fake API server on loopback, with its state and its scripted answers."""

    pods: dict[str, Object] = field(default_factory=dict)
    secrets: dict[str, Object] = field(default_factory=dict)
    events: list[Object] = field(default_factory=list)
    logs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    # The logs of actions by the name of the pod.
    helpers: dict[str, HelperLog] = field(default_factory=dict)
    version: int = 100
    slow_removal: bool = False
    force_works: bool = True
    bookmarks: bool = False
    timings: ApiTimings | None = None

    def __post_init__(self) -> None:
        self.requests: list[Request] = []
        self.scripts: list[Scripted] = []
        self.pod_events: list[WatchEvent] = []
        self.watches = 0
        self.cuts = 0
        self.releases = 0
        self.stopping = False
        self.changed = asyncio.Condition()
        self.host = ""
        self.tls: ssl.SSLContext | None = None
        self.order: Callable[[list[WatchEvent]], list[WatchEvent]] = list
        self.settings = ClusterSettings(namespace="ci")

    # ---- the server

    @asynccontextmanager
    async def serving(self, **settings: Any) -> AsyncIterator[Client]:
        """Serve requests while the block runs. Yield a client with these settings of the section `cluster`."""
        application = web.Application(middlewares=[self.record])
        router = application.router
        router.add_get("/version", self.on_version)
        router.add_get("/api/v1/namespaces/{namespace}/events", self.on_events)
        router.add_post("/api/v1/namespaces/{namespace}/secrets", self.on_secret)
        router.add_delete("/api/v1/namespaces/{namespace}/secrets/{name}", self.on_delete_secret)
        router.add_get(PODS, self.on_list)
        router.add_post(PODS, self.on_create)
        router.add_get(f"{PODS}/{{name}}", self.on_get)
        router.add_delete(f"{PODS}/{{name}}", self.on_delete)
        router.add_patch(f"{PODS}/{{name}}/resize", self.on_resize)
        router.add_get(f"{PODS}/{{name}}/log", self.on_log)
        router.add_get(f"{PODS}/{{name}}/exec", self.on_exec)
        self.add_routes(router)
        runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.runner, self.site = runner, site
        self.host = f"{'https' if self.tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        client = self.client(**settings)
        try:
            yield client
        finally:
            await client.close()
            self.stopping = True
            await self.notify()
            await runner.cleanup()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Do nothing. A subclass overrides this method to add routes of its own."""

    def client(self, **settings: Any) -> Client:
        """Return one more client of this server, with these settings of the section `cluster`."""
        configuration = Configuration(host=self.host)
        configuration.connection_pool_maxsize = 0
        self.settings = ClusterSettings.model_validate({"namespace": "ci", **settings})
        return Client(ApiClient(configuration), self.settings, Metrics(), self.timings)

    @web.middleware
    async def record(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        """Record a request. Return the scripted answer if there is one, otherwise the answer of `handler`."""
        query = dict(request.query)
        plain = request.path.endswith(("/pods", "/events", "/leases"))
        verb = {"POST": "create", "DELETE": "delete", "PATCH": "patch"}.get(request.method, "list" if plain else "get")
        verb = "watch" if query.get("watch") == "true" else verb
        body = json.loads(await request.read() or b"null")
        released = self.releases
        at = asyncio.get_running_loop().time()
        token, accept = request.headers.get("Authorization", ""), request.headers.get("Accept", "")
        self.requests.append(Request(verb, request.path, query, body, token, at, accept))
        await self.notify()
        for script in self.scripts:
            if script.fits(verb, request.path):
                script.times -= 1
                if script.play is not None:
                    return await script.play(request, handler)
                if script.applied:
                    await handler(request)
                if script.status == HANG:
                    await self.wait_for(lambda: self.stopping or self.releases != released)
                return web.Response(status=script.status or 503, text=script.body, headers=script.headers)
        answered: web.StreamResponse = await handler(request)
        return answered

    # ---- scripted answers and changes

    def answer(
        self,
        verb: str,
        part: str,
        status: int,
        message: str = "",
        *,
        body: str | None = None,
        times: int = 1,
        applied: bool = False,
        **headers: str,
    ) -> None:
        """Script the answer to the next `times` requests of the verb `verb` on paths that contain `part`.

        If `applied` is true, the request first takes effect as usual.
        """
        text = status_text(status, message) if body is None else body
        self.scripts.append(
            Scripted(verb, part, status, text, {k.replace("_", "-"): v for k, v in headers.items()}, times, applied)
        )

    async def cut(self) -> None:
        self.cuts += 1
        await self.notify()

    async def release(self) -> None:
        """Answer every request that got no answer yet because of the scripted status HANG."""
        self.releases += 1
        await self.notify()

    async def put(self, pod: Object, kind: str = "MODIFIED") -> Object:
        """Store a pod with a new resource version, and send an event of the type `kind` to the watches."""
        self.version += 1
        pod["metadata"]["resourceVersion"] = str(self.version)
        if kind == "DELETED":
            self.pods.pop(pod["metadata"]["name"], None)
        else:
            self.pods[pod["metadata"]["name"]] = pod
        self.pod_events.append((self.version, {"type": kind, "object": deepcopy(pod)}))
        await self.notify()
        return pod

    async def status(self, name: str, **status: Any) -> None:
        """Merge these fields into the status of the pod `name`, and bind the pod to a node."""
        pod = deepcopy(self.pods[name])
        pod["spec"]["nodeName"] = "node-1"
        pod["status"] = pod.get("status", {}) | status
        await self.put(pod)

    async def remove(self, name: str, *, silently: bool = False) -> None:
        """Delete the pod `name`. If `silently` is true, no watch gets an event."""
        pod = deepcopy(self.pods[name])
        if silently:
            del self.pods[name]
        else:
            await self.put(pod, "DELETED")

    def describe(self) -> str:
        """Return the pods with their status, the names of the Secrets, and the last 20 requests, as a text."""
        pods = [f"pod {name}: {json.dumps(pod.get('status'))}" for name, pod in self.pods.items()]
        requests = [f"{each.verb} {each.path} {each.query or ''}".rstrip() for each in self.requests[-20:]]
        return "\n".join([*pods, f"secrets: {list(self.secrets)}", f"watches: {self.watches}", *requests])

    def requests_for(self, verb: str, part: str = "") -> list[Request]:
        """Return the requests that had this verb and a path that contains `part`."""
        return [each for each in self.requests if each.verb == verb and part in each.path]

    # ---- the API

    async def on_version(self, request: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "37+", "gitVersion": "v1.37.2"})

    async def on_events(self, request: web.Request) -> web.Response:
        uid = request.query["fieldSelector"].removeprefix("involvedObject.uid=")
        return web.json_response({"items": [each for each in self.events if each["involvedObject"]["uid"] == uid]})

    async def on_secret(self, request: web.Request) -> web.Response:
        secret = await request.json()
        name = secret["metadata"]["name"]
        if name in self.secrets:
            return failed(409, f'secrets "{name}" already exists')
        self.secrets[name] = secret
        await self.notify()
        return web.json_response(secret, status=201)

    async def on_delete_secret(self, request: web.Request) -> web.Response:
        gone = self.secrets.pop(request.match_info["name"], None)
        return failed(404, "not found") if gone is None else web.json_response({})

    async def on_create(self, request: web.Request) -> web.Response:
        pod = await request.json()
        name = pod["metadata"]["name"]
        if name in self.pods:
            being = "object is being deleted: " if self.pods[name]["metadata"].get("deletionTimestamp") else ""
            return failed(409, f'{being}pods "{name}" already exists')
        pod["metadata"]["uid"] = f"uid-{self.version}"
        pod["metadata"]["creationTimestamp"] = "2026-11-24T08:00:00Z"
        pod["status"] = {"phase": "Pending"}
        return web.json_response(await self.put(pod, "ADDED"), status=201)

    async def on_get(self, request: web.Request) -> web.Response:
        pod = self.pods.get(request.match_info["name"])
        return failed(404, "not found") if pod is None else web.json_response(pod)

    async def on_delete(self, request: web.Request) -> web.Response:
        """Delete a pod. If `slow_removal` is true and the grace period is not 0, only mark the pod as deleted."""
        name = request.match_info["name"]
        body = json.loads(await request.read() or b"{}")
        pod = deepcopy(self.pods.get(name))
        if pod is None:
            return failed(404, f'pods "{name}" not found')
        if any(pod["metadata"][key] != value for key, value in body.get("preconditions", {}).items()):
            return failed(409, "the precondition does not match")
        forced = body.get("gracePeriodSeconds") == 0 and self.force_works
        if self.slow_removal and not forced:
            pod["metadata"] |= {"deletionTimestamp": "2026-11-24T09:00:00Z", "deletionGracePeriodSeconds": 30}
            await self.put(pod)
        else:
            for secret in [each for each in self.secrets if each == name or each.startswith(f"{name}-")]:
                del self.secrets[secret]
            await self.put(pod, "DELETED")
        return web.json_response(pod)

    async def on_resize(self, request: web.Request) -> web.Response:
        """Set the resource requests of the containers that the patch names."""
        name, body = request.match_info["name"], await request.json()
        pod = deepcopy(self.pods.get(name))
        if pod is None:
            return failed(404, f'pods "{name}" not found')
        if request.content_type != "application/strategic-merge-patch+json":
            return failed(415, "this patch would replace the list of containers")
        if body["metadata"]["uid"] != pod["metadata"]["uid"]:
            return failed(409, "the precondition does not match")
        for change in body["spec"]["containers"]:
            found = next(each for each in pod["spec"]["containers"] if each["name"] == change["name"])
            found["resources"]["requests"] |= change["resources"]["requests"]
        return web.json_response(await self.put(pod))

    async def on_exec(self, request: web.Request) -> web.StreamResponse:
        """Run a program in container `helper`. This class supports only the program that reads the log file."""
        name, argv = request.match_info["name"], request.query.getall("command")
        if name not in self.helpers or argv[-3:-2] != [LOG_FOLDER]:
            return failed(404, "no such program")
        with suppress(ConnectionError):
            return await serve_errand(request, self.helpers[name])
        return web.Response()

    def log_of(self, name: str, container: str) -> bytes | None:
        """Return the part of a container's log that the node has kept. Return None if the container has no log."""
        if container == "helper" and name in self.helpers:
            return self.helpers[name].body()
        return self.logs.get((name, container))

    async def begin_log(self, name: str) -> HelperLog:
        """Create an empty log for container `helper` of the pod `name`. Return the log."""
        self.helpers[name] = HelperLog(log_key_of(self.pods[name]))
        await self.notify()
        return self.helpers[name]

    async def on_log(self, request: web.Request) -> web.StreamResponse:
        """Return the log of a container. With `follow=true`, send the log until the container has ended."""
        key = request.match_info["name"], request.query.get("container", "")
        log = self.log_of(*key)
        if log is None:
            return failed(404, "no log")
        if request.query.get("follow") != "true":
            return web.Response(body=log)
        response = web.StreamResponse()
        with suppress(ConnectionError):
            await self.follow(request, response, key)
        return response

    async def follow(self, request: web.Request, response: web.StreamResponse, key: tuple[str, str]) -> None:
        """Send the log of a container while the log grows.

        Like a kubelet, send the HTTP headers only together with the first bytes of the log.
        """
        sent, over = 0, False
        while not over:
            over = not self.runs(*key)
            log = self.log_of(*key) or b""
            if over or len(log) > sent:
                if not sent:
                    await response.prepare(request)
                await response.write(log[sent:])
                sent = len(log)
            else:
                await self.wait_for(lambda: len(self.log_of(*key) or b"") > sent or not self.runs(*key))  # noqa: B023

    def runs(self, name: str, container: str) -> bool:
        statuses = self.pods.get(name, {}).get("status", {}).get("containerStatuses", ())
        return not self.stopping and any(each["name"] == container and "running" in each["state"] for each in statuses)

    async def on_list(self, request: web.Request) -> web.StreamResponse:
        """Return a list of all pods. With `watch=true`, send watch events of pods."""
        if request.query.get("watch") == "true":
            return await self.on_watch(request)
        return web.json_response(
            {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.pods.values())}
        )

    def must_act(self, cuts: int, since: int, events: list[WatchEvent]) -> bool:
        """Return whether a watch must now send an event, send a bookmark, or end."""
        return self.stopping or self.cuts != cuts or self.bookmarks or bool(events and events[-1][0] > since)

    async def on_watch(self, request: web.Request, events: list[WatchEvent] | None = None) -> web.StreamResponse:
        """Send the watch events after the requested resource version, until the watch ends."""
        events = self.pod_events if events is None else events
        since, cuts = int(request.query["resourceVersion"]), self.cuts
        response = web.StreamResponse()
        await response.prepare(request)
        self.watches += 1
        await self.notify()
        seconds = float(request.query.get("timeoutSeconds", 0))
        with suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(seconds if seconds > 0 else None):
                await self.send_events(response, since, cuts, events)
        self.watches -= 1
        return response

    async def send_events(self, response: web.StreamResponse, since: int, cuts: int, events: list[WatchEvent]) -> None:
        """Send each event of a watch that is newer than the resource version `since`.

        Return when the test cuts all watches or when the server stops.
        """
        while not self.stopping and self.cuts == cuts:
            fresh = [each for each in events if each[0] > since]
            for _, event in self.order(fresh):
                await response.write(encode_event(event))
            since = max([since, *(version for version, _ in fresh)])
            if self.bookmarks:
                bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
                await response.write(json.dumps(bookmark).encode() + b"\n")
                self.bookmarks = False
            seen = since
            await self.wait_for(lambda: self.must_act(cuts, seen, events))  # noqa: B023 - awaited at once


def encode_event(event: Object) -> bytes:
    """Return a watch event as a line of JSON, with the spacing and the order of fields that a real API server uses."""
    found, head = event["object"], ("name", "namespace", "uid", "resourceVersion")
    metadata = {key: found["metadata"][key] for key in head if key in found["metadata"]} | found["metadata"]
    kind = {"kind": found.get("kind", "Pod"), "apiVersion": found.get("apiVersion", "v1"), "metadata": metadata}
    text = json.dumps({"type": event["type"], "object": kind | found | {"metadata": metadata}}, separators=(",", ":"))
    return text.encode() + b"\n"


def pod_of(name: str, uid: str = "", *, agent: str = "agent-1", **status: Any) -> Object:
    """Return a pod with these fields of its status, and with the labels of `agent` in the pool `default`."""
    labels = {"app.kubernetes.io/managed-by": "sealci-agent", "sealci.dev/pool": "default", "sealci.dev/agent": agent}
    metadata = {
        "name": name,
        "uid": uid or f"uid-{name}",
        "labels": labels,
        "creationTimestamp": "2026-11-24T08:00:00Z",
    }
    return {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": status}
