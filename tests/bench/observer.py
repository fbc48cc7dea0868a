"""The benchmark's own watch of the pods, which measures the time that the agent adds to an action.

The watch lasts as long as an experiment. The added time has two parts. The first part lasts from the scheduler's
message until the pod appears in the watch. The second part lasts from the exit code in the watch to the outcome at the
scheduler. Both parts contain the time of gRPC and of the agent. The first part also contains the time in which the API
server creates the pod. The agent and the benchmark see the exit code in watches of the same kind.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from agent.cluster.api.client import Client
from agent.settings import ClusterSettings
from agent.telemetry.metrics import Metrics
from tests.bench.rows import Row, percentile, row
from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.minimal_scheduler import Given

SESSION = "sealci.dev/session"


@asynccontextmanager
async def api(namespace: str) -> AsyncIterator[Client]:
    """Yield a client for the cluster's API. The client has no effective rate limit, unlike an agent's client."""
    settings = ClusterSettings(namespace=namespace, kubeconfig=Path(kube.kubeconfig()), requests_per_second=10_000)
    client = await Client.connect(settings, Metrics())
    try:
        yield client
    finally:
        await client.close()


class Observer:
    """A watch of the pods of a namespace, and its results.

    By action id, the results are the name of the pod, and the times at which the watch saw the pod's creation and the
    end of its commands. The times are in seconds of `time.time`.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.names: dict[str, str] = {}
        self.created: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.before: list[float] = []
        self.after: list[float] = []

    async def __aenter__(self) -> Observer:
        self.watching = asyncio.create_task(self.watch(), name="bench observer")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.watching.cancel()
        await asyncio.gather(self.watching, return_exceptions=True)

    async def watch(self) -> None:
        """Watch the pods and record each event, until the task is cancelled."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        query = {"watch": "true", "labelSelector": "app.kubernetes.io/managed-by=sealci-agent"}
        forever = aiohttp.ClientTimeout(total=None)
        async with (
            api(self.namespace) as client,
            client.stream("watch", "pods", path, query=query, timeout=forever) as answer,
        ):
            async for line in answer.content:
                self.take(json.loads(line), time.time())

    def take(self, event: dict[str, Any], now: float) -> None:
        """Record an event of the watch, which arrived at the time `now`."""
        pod = event["object"]
        name = json.loads(pod["metadata"]["annotations"][SESSION])["action_id"]
        self.names[name] = pod["metadata"]["name"]
        self.created.setdefault(name, now)
        for status in pod.get("status", {}).get("containerStatuses", ()):
            if status["name"] == "action" and "terminated" in status["state"]:
                self.ended.setdefault(name, now)

    def add(self, given: Given) -> None:
        """Add the times of an action that has ended and whose pod is gone to the samples for `rows`."""
        name = given.action.action_id
        self.before.append(1000 * (self.created[name] - given.given_at))
        self.after.append(1000 * max(0.0, given.finished_at - self.ended[name]))

    def rows(self) -> list[Row]:
        """Return the rows with the time that the agent adds to an action."""
        added = [one + other for one, other in zip(self.before, self.after, strict=True)]
        count = f"{len(added)} actions"
        return [
            row("the agent adds: action given -> pod seen", "ms", self.before),
            row("the agent adds: exit seen -> end known", "ms", self.after),
            row("the agent adds in all, p50", "ms", added, target="<= 50", note=count),
            row("the agent adds in all, p99", "ms", [percentile(added, 99)], target="<= 150", note=count),
        ]
