"""Many actions begin in warm pods while requests, execs and pods fail at random. No order runs twice.

The parts of an agent that keep warm pods run in this process, on a scripted API server. One seed decides all faults and
is printed. Another seed: `SEED=7 pytest tests/faults/test_warm_claims.py`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from agent.aio import cancelled_on_exit
from agent.cluster.api import client as clients
from agent.cluster.api.timings import ApiTimings
from agent.cluster.ownership.orphans import Sweep
from agent.cluster.packaging import LOG_FOLDER
from agent.cluster.pod.labels import WARM
from agent.cluster.warm import claim, delivery, warm_pods
from agent.domain.actions import Key
from agent.domain.errors import ActionFailed, Reason
from agent.domain.observations import Lost, Running, SetupFailed
from tests.fakes.shared_api import SharedApi
from tests.fakes.warm_agent import ACTION, IMAGE, WarmAgent, warm_agent
from tests.fakes.warm_helper import Torn

if TYPE_CHECKING:
    from agent.domain.json import Object

SEED = int(os.environ.get("SEED", "20261127"))
AT_ONCE = 20
# Share of requests that fail, and of deliveries that break at each step.
FAULTS = 0.06
STEPS = ("order stored", "go arrived", "begun", "sealed")
POOLS = {"pools": [{"image": IMAGE, "min": 8, "max": 20}], "max_pods": 20}


@dataclass(eq=False)
class RandomApi(SharedApi):
    """An API server whose requests fail at random while `faulty` is true. It starts all pods at once."""

    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    faulty: bool = False
    created: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    starts: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.warm_step = self.at_step

    def fails(self, what: str) -> bool:
        """Return whether a fault hits now, and count it."""
        hit = self.faulty and self.chance.random() < FAULTS
        self.broken[what] += hit
        return hit

    async def at_step(self, name: str, step: str) -> None:
        if self.fails(step):
            raise Torn

    async def on_create(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.fails("create"):
            return web.Response(status=503)
        answer = await super().on_create(request)
        if answer.status == 201:
            name = body["metadata"]["name"]
            if WARM not in body["metadata"]["labels"]:
                self.created[name] += 1
            task = asyncio.create_task(self.run_idle(name), name=f"start of {name}")
            self.starts.add(task)
            task.add_done_callback(self.starts.discard)
        return web.Response(status=503) if self.fails("answer to create") else answer

    async def run_idle(self, name: str) -> None:
        if name in self.pods:
            await super().run_idle(name)

    async def on_get(self, request: web.Request) -> web.Response:
        return web.Response(status=503) if self.fails("get") else await super().on_get(request)

    async def on_delete(self, request: web.Request) -> web.Response:
        if self.fails("delete"):
            return web.Response(status=503)
        answer = await super().on_delete(request)
        return web.Response(status=503) if self.fails("answer to delete") else answer

    async def on_patch_pod(self, request: web.Request) -> web.Response:
        if self.fails("claim"):
            return web.Response(status=self.chance.choice((409, 503)))
        answer = await super().on_patch_pod(request)
        return web.Response(status=503) if self.fails("answer to claim") else answer

    async def on_exec(self, request: web.Request) -> web.StreamResponse:
        if LOG_FOLDER in request.query.getall("command") and self.fails("exec"):
            return web.Response(status=500)
        return await super().on_exec(request)

    async def end_pods(self) -> None:
        """End waiting warm pods at random: deleted, evicted, or killed for memory."""
        while True:
            await asyncio.sleep(0.02)
            idle = [name for name, pod in self.pods.items() if WARM in pod["metadata"]["labels"]]
            if not self.faulty or not idle or self.chance.random() > FAULTS * 2:
                continue
            name, how = self.chance.choice(idle), self.chance.choice(("deleted", "evicted", "oom"))
            self.broken[how] += 1
            self.warm_helper(name).alive = False
            if how == "deleted":
                await self.remove(name)
            elif how == "evicted":
                await self.status(name, phase="Failed", reason="Evicted")
            else:
                killed: Object = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
                await self.status(name, containerStatuses=[{"name": "action", "state": killed}])


async def run_one(agent: WarmAgent, number: int) -> str:
    """Run one action. Return how it began: "warm", "cold", or the reason why it did not begin."""
    environment = agent.backend.environment(replace(ACTION, key=Key(f"action-{number}"), secrets={}))
    try:
        await environment.create()
        async with aclosing(environment.observations()) as observations:
            async for seen in observations:
                if isinstance(seen, (Running, Lost, SetupFailed)):
                    break
        return "warm" if environment.plan.name.startswith("sealci-warm-") else "cold"
    except ActionFailed as error:
        return error.reason.value
    finally:
        await environment.remove()


def count_tasks() -> int:
    """Return the number of tasks, without those of the scripted API server for its open connections."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return sum(not name.startswith("RequestHandler") for name in names)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [60, pytest.param(2500, marks=pytest.mark.soak)])
async def test_no_order_runs_twice_and_nothing_is_left(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "DEFAULT_TIMINGS", ApiTimings(retry_pause=0.001))
    monkeypatch.setattr(claim, "ASK_SECONDS", 0.2)
    monkeypatch.setattr(claim, "DISCARD_PAUSE", 0.005)
    monkeypatch.setattr(delivery, "QUESTION_PAUSE", 0.02)
    monkeypatch.setattr(warm_pods, "PACE_SECONDS", 0.001)
    api = RandomApi()
    async with warm_agent(api, warm=POOLS) as agent:
        await agent.until(lambda: len(agent.warm.pools.by_key) == 1)
        tasks, turns = count_tasks(), asyncio.Semaphore(AT_ONCE)
        monkeypatch.setattr("agent.cluster.warm.pool.FIRST_PAUSE", 0.02)
        api.faulty = True

        async def one(number: int) -> str:
            async with turns:
                # Some actions find their pool empty.
                for _ in range(api.chance.randrange(100)):
                    if agent.warm.counts():
                        break
                    await asyncio.sleep(0.01)
                return await run_one(agent, number)

        ends = asyncio.create_task(api.end_pods(), name="ends of pods")
        async with cancelled_on_exit(ends):
            began = Counter(await asyncio.gather(*map(one, range(count))))
        api.faulty = False
        print(f"seed {SEED}: {dict(began)}; faults: {dict(api.broken)}; claims: {agent.claims()}")

        # Each order, by the nonce of its session, has run at most once, and in exactly one pod if the action began.
        nonces = Counter(order["nonce"] for helper in api.warm.values() for order in helper.orders)
        assert set(nonces.values()) <= {1}
        assert set(api.created.values()) <= {1}
        assert max(len(helper.orders) for helper in api.warm.values()) == 1
        assert began.total() == count
        assert set(began) <= {"warm", "cold", Reason.INTERNAL.value, Reason.CLUSTER_UNAVAILABLE.value}
        assert began["warm"] <= nonces.total() <= began["warm"] + began["INTERNAL"] + began["CLUSTER_UNAVAILABLE"]
        assert len(api.created) >= began["cold"]
        # The faults were there, and most actions began all the same.
        assert began["warm"] + began["cold"] > 0.9 * count
        assert began["warm"] > 0

        # What is left are the warm pods that wait, and nothing of the sessions.
        await agent.until(lambda: not agent.warm.leaving and not agent.warm.reserved)
        agent.warm.drain()
        await agent.warm.wait_until_empty(20.0)
        # The sweep finds the pods that the API server has created without an answer.
        sweep = Sweep(agent.backend, 60.0)
        async with asyncio.timeout(20):
            while api.pods:
                await sweep.run_once()
                await asyncio.sleep(0.01)
        assert agent.backend.registry.owned_names == ()
        gc.collect()
        await agent.until(lambda: count_tasks() <= tasks)
