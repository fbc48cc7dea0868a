"""The parts of an agent that keep warm pods and give them to actions, on a scripted API server."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agent.cluster.capabilities import ClusterFacts
from agent.cluster.environment.backend import PodBackend
from agent.cluster.environment.watch import PodWatch
from agent.cluster.pod.labels import WARM
from agent.domain.actions import Action, Key
from agent.domain.json import Object
from agent.settings import Settings
from tests.fakes.shared_api import SharedApi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

IMAGE = "debian:13"
ACTION = Action(Key("build"), IMAGE, ("make",), env={"A": "b"}, secrets={"TOKEN": "hunter2-hunter2"})


def settings_of(**changes: Any) -> Settings:
    """Return settings with one pool of one warm pod. `changes` are sections."""
    sections: Object = {
        "cluster": {"namespace": "ci", "retry_for": 5},
        "policy": {"pending_timeout": 5},
        "warm": {"pools": [{"image": IMAGE}]},
    }
    return Settings.model_validate(sections | changes)


class WarmAgent:
    """The parts of an agent that keep warm pods and give them to actions. Lives for one test."""

    def __init__(self, api: SharedApi, backend: PodBackend) -> None:
        self.api = api
        self.backend = backend
        self.warm = backend.warm

    def sample(self, name: str, **labels: str) -> float:
        value = self.backend.metrics.registry.get_sample_value(f"sealci_agent_{name}", labels)
        assert value is not None, name
        return value

    def claims(self) -> dict[str, float]:
        """Return the counted results of claims that are not 0."""
        found = self.backend.metrics.registry.collect()
        return {
            sample.labels["result"]: sample.value
            for family in found
            for sample in family.samples
            if sample.name == "sealci_agent_warm_claims_total" and sample.value
        }

    @property
    def idle(self) -> list[str]:
        """Return the names of the unclaimed warm pods that the API server has."""
        return [name for name, pod in self.api.pods.items() if WARM in pod["metadata"]["labels"]]

    async def ready(self, count: int = 1) -> list[str]:
        """Wait until `count` warm pods exist, start their containers, and wait until the agent knows it."""
        await self.api.until(f"{count} warm pods", lambda: len(self.idle) == count)
        for name in self.idle:
            await self.api.run_idle(name)
        await self.until(lambda: sum(pod.ready for pod in self.warm.pools.pods()) == count)
        return self.idle

    async def until(self, condition: Any) -> None:
        """Wait until a condition on the agent holds."""
        async with asyncio.timeout(20):
            while not condition():
                self.warm.wake.set()
                await asyncio.sleep(0.01)


@asynccontextmanager
async def warm_agent(api: SharedApi, agent_id: str = "uid-a.1", **changes: Any) -> AsyncIterator[WarmAgent]:
    settings = settings_of(**changes)
    async with api.serving(namespace="ci", retry_for=5) as client:
        facts = ClusterFacts()
        facts.set_user_namespaces(True)
        watch = PodWatch(client, "ci", "default", client.metrics, agent_id)
        backend = PodBackend(settings, client, watch, agent_id, facts)
        watch.on_change = backend.warm.pod_changed
        tasks = [asyncio.create_task(watch.run(), name="watch"), asyncio.create_task(backend.warm.run(), name="warm")]
        await api.until("the watch is open", lambda: api.watches == 1)
        try:
            yield WarmAgent(api, backend)
        finally:
            for task in tasks:
                task.cancel()
            done, _ = await asyncio.wait(tasks)
            for task in done:
                if not task.cancelled() and (error := task.exception()):
                    raise error
