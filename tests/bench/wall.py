"""Duration of one trivial action, compared with the kubectl script of bare.py.

The action and the script run alternately. An Observer measures the time that the agent adds. More rows show the
duration of each phase, from the agent's metrics.
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

TIMES = 15
WARM = 1
SEED = 20261124


async def measure(namespace: str) -> list[Row]:
    """Measure the duration of actions without artifacts and of actions with an artifact. Return the rows."""
    port = free_port()
    async with minimal_scheduler(namespace) as scheduler:
        await scheduler.agent(http={"port": port})
        async with Observer(namespace) as seen:
            plain = await pairs(scheduler, seen, files=False)
            files = await pairs(scheduler, seen, files=True)
        stages = await own_account(port)
    return [
        *plain.rows("one action without files", 0.95),
        *files.rows("one action with a file", 1.0),
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


class Pairs:
    """Durations of pairs. A pair is one action and one run of the kubectl script that does the same work.

    A duration is in seconds. It lasts until the outcome or the exit code is known, or until the pod is gone.
    """

    def __init__(self) -> None:
        self.own: list[tuple[float, float]] = []
        self.bare: list[bare.Bare] = []

    def rows(self, what: str, limit: float) -> list[Row]:
        ends, gone = zip(*self.own, strict=True)
        floor = [each.read for each in self.bare]
        left = [each.gone for each in self.bare]
        return [
            row(f"{what}, until its end is known", "s", ends, floor=floor, target=f"<= {limit}"),
            row(f"{what}, until it is gone", "s", gone, floor=left),
        ]


async def pairs(scheduler: MinimalScheduler, seen: Observer, *, files: bool) -> Pairs:
    """Run an action and the kubectl script in pairs, and return the durations of both.

    The order of action and script changes from pair to pair. If `files` is true, the action and the script copy a file
    out of the pod.
    """
    found, chance = Pairs(), random.Random(SEED)
    for number in range(WARM + TIMES):
        kept = Pairs() if number < WARM else found
        # The kubelet checks its containers once a second. Both runs of a pair start after the same random pause, so
        # that this interval favours neither the action nor the script.
        pause = chance.random()
        for which in (0, 1) if number % 2 else (1, 0):
            await asyncio.sleep(pause)
            if which:
                kept.own.append(await own(scheduler, seen, files=files))
            else:
                kept.bare.append(await bare_run(scheduler, number, files=files))
    return found


async def own(scheduler: MinimalScheduler, seen: Observer, *, files: bool) -> tuple[float, float]:
    """Run one action through the agent. Return the seconds until its outcome is known and until its pod is gone."""
    rules = wire.ArtifactRules() if files else wire.ArtifactRules(when=wire.ArtifactRules.NEVER)
    command = "echo hello > out; echo hello" if files else "echo hello"
    given = await scheduler.give(BUSYBOX, command, artifacts=rules).finished()
    gone = await scheduler.idle()
    if not files:
        seen.add(given)
    return given.finished_at - given.given_at, gone - given.given_at


async def bare_run(scheduler: MinimalScheduler, number: int, *, files: bool) -> bare.Bare:
    command = "echo hello > /workspace/out; echo hello" if files else "echo hello"
    number = number + (1000 if files else 0)
    return await bare.script(scheduler.namespace, scheduler.folder, number, BUSYBOX, command, files=files)
