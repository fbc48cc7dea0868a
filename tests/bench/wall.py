"""Duration of one trivial action, compared with the kubectl script of bare.py, and with an agent without nudges.

All run in turn. An Observer measures the time that the agent adds. More rows show the duration of each phase, from the
agent's metrics.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from agent.protocol.wire import agent_pb2 as wire
from tests.bench import bare
from tests.bench.minimal_scheduler import minimal_scheduler
from tests.bench.observer import Observer
from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import free_port
from tests.e2e.lab import BUSYBOX

if TYPE_CHECKING:
    from tests.bench.minimal_scheduler import MinimalScheduler

TIMES = 10
WARM = 1
SEED = 20261124
# The streams of the two agents: one nudges the kubelet, the other does not.
NUDGING, PLAIN = 0, 1


async def measure(namespace: str) -> list[Row]:
    """Measure the duration of actions without artifacts and of actions with an artifact. Return the rows."""
    port = free_port()
    async with minimal_scheduler(namespace) as scheduler:
        await scheduler.agent(http={"port": port})
        await scheduler.agent(agent={"pool": "plain"}, environment={"nudge_kubelet": False})
        async with Observer(namespace) as seen:
            plain = await runs(scheduler, seen, files=False)
            files = await runs(scheduler, seen, files=True)
        stages = await own_account(port)
    return [
        *plain.rows("one action without files", 0.6),
        *files.rows("one action with a file", 0.65),
        *seen.rows(),
        *stages,
    ]


async def own_account(port: int) -> list[Row]:
    """Return a row for each phase of an action with its mean duration, from the agent's metrics.

    `port` is the HTTP port of the agent.
    """
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
        text = await response.text()
    family = next(
        each for each in text_string_to_metric_families(text) if each.name == "sealci_agent_phase_duration_seconds"
    )
    totals: dict[str, dict[str, float]] = {}
    for sample in family.samples:
        totals.setdefault(sample.labels["phase"], {})[sample.name.rsplit("_", 1)[1]] = sample.value
    return [
        row(f"the agent's own account: {phase}, mean", "ms", [1000 * each["sum"] / each["count"]])
        for phase, each in totals.items()
        if each["count"]
    ]


class Runs:
    """Durations of runs that do the same work: an action with nudges, an action without, and a kubectl script.

    A duration is in seconds. It lasts until the outcome or the exit code is known, or until the pod is gone.
    """

    def __init__(self) -> None:
        self.own: dict[int, list[tuple[float, float]]] = {NUDGING: [], PLAIN: []}
        self.bare: list[bare.Bare] = []

    def rows(self, what: str, limit: float) -> list[Row]:
        ends, gone = zip(*self.own[NUDGING], strict=True)
        plain_ends, plain_gone = zip(*self.own[PLAIN], strict=True)
        floor = [each.read for each in self.bare]
        left = [each.gone for each in self.bare]
        without = "against environment.nudge_kubelet: false"
        return [
            row(f"{what}, until its end is known", "s", ends, floor=floor, target=f"<= {limit}"),
            row(f"{what}, until it is gone", "s", gone, floor=left, target="<= 0.35"),
            row(f"{what}, until its end is known, {without}", "s", ends, floor=plain_ends),
            row(f"{what}, until it is gone, {without}", "s", gone, floor=plain_gone),
        ]


async def runs(scheduler: MinimalScheduler, seen: Observer, *, files: bool) -> Runs:
    """Run both agents and the kubectl script in turn, and return the durations of all.

    The order of the agents and the script changes from turn to turn. If `files` is true, all of them copy a file out of
    the pod.
    """
    found, chance = Runs(), random.Random(SEED)
    for number in range(WARM + TIMES):
        kept = Runs() if number < WARM else found
        # The kubelet checks its containers once a second. All runs of a turn start after the same random pause, so
        # that this interval favours neither the agents nor the script.
        pause = chance.random()
        for which in chance.sample((NUDGING, PLAIN, None), 3):
            await asyncio.sleep(pause)
            if which is None:
                kept.bare.append(await bare_run(scheduler, number, files=files))
            else:
                kept.own[which].append(await own(scheduler, seen, which, files=files))
    return found


async def own(scheduler: MinimalScheduler, seen: Observer, which: int, *, files: bool) -> tuple[float, float]:
    """Run one action on the agent `which`. Return the seconds until its outcome is known and until its pod is gone."""
    rules = wire.ArtifactRules() if files else wire.ArtifactRules(when=wire.ArtifactRules.NEVER)
    command = "echo hello > out; echo hello" if files else "echo hello"
    given = await scheduler.give(BUSYBOX, command, stream=which, artifacts=rules).finished()
    gone = await scheduler.idle()
    if which == NUDGING and not files:
        seen.add(given)
    return given.finished_at - given.given_at, gone - given.given_at


async def bare_run(scheduler: MinimalScheduler, number: int, *, files: bool) -> bare.Bare:
    command = "echo hello > /workspace/out; echo hello" if files else "echo hello"
    number = number + (1000 if files else 0)
    return await bare.script(scheduler.namespace, scheduler.folder, number, BUSYBOX, command, files=files)
