"""Warm pods: how soon an action begins, when its end is known, and what pods cost that wait.

A warm agent, an agent without warm pods, and the kubectl script of bare.py run in turn. Then one agent keeps many warm
pods, and no action comes.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from agent.protocol.wire import agent_pb2 as wire
from tests.bench import bare
from tests.bench.minimal_scheduler import minimal_scheduler
from tests.bench.rows import Row, percentile, row
from tests.bench.scripted.bench_setup import free_port
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX

if TYPE_CHECKING:
    from tests.bench.minimal_scheduler import Given, MinimalScheduler

TIMES, FIRST = 15, 1
SEED = 20261127
# The streams of the two agents.
WARM, COLD = 0, 1
# Number of warm pods of the idle agent, and seconds for which their cost is measured.
IDLE_PODS, IDLE_SECONDS = 20, 60.0


async def measure(namespace: str) -> list[Row]:
    """Run the experiment of this module, which takes about four minutes. Return the rows."""
    port = free_port()
    async with minimal_scheduler(namespace) as scheduler:
        await scheduler.agent(http={"port": port}, warm={"pools": [{"image": BUSYBOX, "min": 2}]})
        await scheduler.agent(agent={"pool": "cold"})
        starts, ends, floor = await runs(scheduler, port)
    idle = await idle_cost(namespace)
    warm, cold = starts[WARM], starts[COLD]
    return [
        row("dispatch to first command, warm pod", "ms", warm, floor=cold, note="floor: a pod of its own"),
        row("dispatch to first command, warm, p50", "ms", [percentile(warm, 50)], target="<= 120"),
        row("dispatch to first command, warm, p95", "ms", [percentile(warm, 95)], target="<= 250"),
        row("dispatch to first command, cold, p95", "ms", [percentile(cold, 95)]),
        row("a trivial action in a warm pod, until its end is known", "s", ends, floor=floor, target="<= 0.25"),
        *idle,
    ]


async def runs(scheduler: MinimalScheduler, port: int) -> tuple[list[list[float]], list[float], list[float]]:
    """Run both agents and the kubectl script in turn.

    Return the milliseconds until the first command for each agent, the seconds until the end of an action in a warm
    pod, and the seconds of the script.
    """
    starts: list[list[float]] = [[], []]
    ends: list[float] = []
    floor: list[float] = []
    chance = random.Random(SEED)
    for number in range(FIRST + TIMES):
        pause = chance.random()
        for which in chance.sample((WARM, COLD, None), 3):
            await until_idle(port, 2)
            await asyncio.sleep(pause)
            if which is None:
                done = await bare.script(scheduler.namespace, scheduler.folder, number, BUSYBOX, "echo hello")
                floor += [done.read] if number >= FIRST else []
                continue
            given = await one(scheduler, which)
            if number >= FIRST:
                starts[which].append(1000 * (given.first_log_at - given.given_at))
                ends += [given.finished_at - given.given_at] if which == WARM else []
    return starts, ends, floor


async def one(scheduler: MinimalScheduler, which: int) -> Given:
    """Run one action on the agent `which`, and wait until its pod is gone."""
    rules = wire.ArtifactRules(when=wire.ArtifactRules.NEVER)
    given = await scheduler.give(BUSYBOX, "echo hello", stream=which, artifacts=rules).finished()
    await scheduler.idle()
    return given


async def idle_cost(namespace: str) -> list[Row]:
    """Return what the pods of an idle pool and their agent cost."""
    port = free_port()
    async with minimal_scheduler(namespace) as scheduler:
        pools = [{"image": BUSYBOX, "min": IDLE_PODS}]
        await scheduler.agent(http={"port": port}, agent={"pool": "idle"}, warm={"pools": pools, "max_pods": IDLE_PODS})
        await until_idle(port, IDLE_PODS)
        # The node has reported the processor time of the last pod when a later report has come.
        await asyncio.sleep(20)
        began, used, requests = time.monotonic(), pod_seconds(namespace), await count_requests(port)
        await asyncio.sleep(IDLE_SECONDS)
        took = time.monotonic() - began
        cores = (pod_seconds(namespace) - used) / took
        per_minute = (await count_requests(port) - requests) * 60 / took
    note = f"over {took:.0f} s"
    return [
        row(f"an idle pool of {IDLE_PODS} warm pods", "cores", [cores], target="<= 0.1", note=note),
        row(f"requests of an idle pool of {IDLE_PODS}", "/min", [per_minute], target="<= 2", note=f"{note}, no Leases"),
    ]


async def metrics_of(port: int) -> list[tuple[str, dict[str, str], float]]:
    """Return name, labels and value of each sample of an agent's metrics."""
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    return [(each.name, each.labels, each.value) for f in text_string_to_metric_families(text) for each in f.samples]


async def until_idle(port: int, count: int) -> None:
    """Wait until `count` warm pods of the agent wait for an action."""
    async with asyncio.timeout(180):
        while ("sealci_agent_warm_pods", {"state": "idle"}, count) not in await metrics_of(port):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def count_requests(port: int) -> float:
    """Return the number of requests that an agent has sent to the API server, without those for its Lease."""
    samples = await metrics_of(port)
    return sum(
        value
        for name, labels, value in samples
        if name == "sealci_agent_k8s_requests_total" and labels["resource"] != "leases"
    )


def pod_seconds(namespace: str) -> float:
    """Return the processor time of all pods of a namespace, as the node reports it."""
    (node,) = (each["metadata"]["name"] for each in kube.get("nodes"))
    summary = json.loads(kube.kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/stats/summary"))
    pods = [each for each in summary["pods"] if each["podRef"]["namespace"] == namespace]
    return float(sum(each.get("cpu", {}).get("usageCoreNanoSeconds", 0) for each in pods)) / 1e9
