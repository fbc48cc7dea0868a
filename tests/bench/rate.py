"""Actions per second of one, two and four replicas, and the cost of one action: CPU of the agent, requests to the API.

The pods of the scripted API server (scripted/api.py) run for one second. One row is the rate of one replica with its
default limits. The rows of several replicas use a smaller load, for which the CPU of the machine suffices even with
four replicas. These rows compare the rate, and the rate per CPU second, with one replica.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from agent.domain.json import Object
from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import BenchSetup, Load, bench_setup

if TYPE_CHECKING:
    from collections.abc import Sequence


LIFE = "life=1"
WARM = 3.0
WINDOW = 3.0
BUSY = 0.8
SLOTS = 12
SCALE = (2, 4)
WANTED, WANTED_OF = 1.95, 2
UNLIMITED: Object = {"requests_per_second": 5000.0}
COUNTED = 60
# Largest number of API requests for each kind of action. GitLab Runner makes 17.
KINDS: tuple[tuple[str, int, Object], ...] = (
    ("no files", 8, {}),
    ("files", 8, {"files": True}),
    ("secrets", 8, {"secrets": True}),
)


@dataclass
class Pace:
    """Samples of one experiment. Each sample covers a time span of a few seconds.

    The samples are the actions per second, the CPU seconds of all agents per action, and the share of the machine's CPU
    time that is busy. `api_cpu` is the CPU seconds of the scripted API server per action.
    """

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    api_cpu: float = 0.0
    busy: list[float] = field(default_factory=list)
    failed: int = 0

    def joined(self, other: Pace) -> Pace:
        """Return a Pace with the samples of this object and of `other`."""
        windows = (self.rates + other.rates, self.cpu + other.cpu)
        return Pace(*windows, self.api_cpu, self.busy + other.busy, self.failed + other.failed)

    @property
    def rate(self) -> float:
        """Return the median over the samples of the actions per second."""
        return median(self.rates)

    @property
    def per_cpu(self) -> float:
        """Return the median over the samples of the actions per CPU second of the agents."""
        return 1 / median(self.cpu)

    @property
    def note(self) -> str:
        """Return the load of the machine and the CPU per action, as a text for the note of a row."""
        failed = f", {self.failed} FAILED" if self.failed else ""
        return f"machine {median(self.busy):.0%} busy, {median(self.cpu) * 1e3:.1f} ms CPU of agents per action{failed}"


async def pace(replicas: int, slots: int, windows: int, cluster: Object | None = None, **order: Any) -> Pace:
    """Run `replicas` agents with all slots in use on the scripted API server.

    Measure the agents `windows` times. `order` holds more fields of the request that makes the scheduler send actions.
    """
    async with bench_setup() as setup:
        for _ in range(replicas):
            await setup.begin(slots=slots, cluster=cluster or {})
        before = await fill_slots(setup, **order)
        first = await setup.api.ask()
        found = await measure_windows(setup, before, windows)
        last = await setup.api.ask()
        found.api_cpu = (last["cpu"] - first["cpu"]) / max(1, last["gone"] - first["gone"])
        return found


async def fill_slots(setup: BenchSetup, **order: Any) -> Object:
    """Fill the slots of all agents and wait WARM seconds. Return the counters of the scheduler.

    `order` holds more fields of the request that makes the scheduler send actions.
    """
    await setup.until(lambda seen: seen["ready"] == len(setup.agents))
    await setup.scheduler.ask(give=LIFE, count=-1, **order)
    await asyncio.sleep(WARM)
    return await setup.scheduler.ask()


async def measure_windows(setup: BenchSetup, before: Object, windows: int, seconds: float = WINDOW) -> Pace:
    """Measure the agents `windows` times, for `seconds` each.

    `before` contains the scheduler's counters at the start of the first measurement.
    """
    found, load = Pace(), Load()
    cpu, began = setup.cpu, time.monotonic()
    for _ in range(windows):
        await asyncio.sleep(seconds)
        after = await setup.scheduler.ask()
        now, used = time.monotonic(), setup.cpu
        done = max(1, after["ends"].get("finished", 0) - before["ends"].get("finished", 0))
        found.rates.append(done / (now - began))
        found.cpu.append((used - cpu) / done)
        found.busy.append(load.share())
        before, cpu, began = after, used, now
    found.failed = before["ends"].get("failed", 0)
    return found


async def measure(namespace: str = "") -> list[Row]:
    """Run the experiment of this module, which takes about two minutes. Return the rows."""
    default = await pace(1, 100, 3)
    free = await pace(1, 120, 3, UNLIMITED)
    api = [1 / free.api_cpu]
    rows = [
        row(
            "actions/s, one replica, default limits, pods of 1 s",
            "/s",
            default.rates,
            target=">= 50",
            note=default.note,
        ),
        row("actions/s, one replica, no limit of requests", "/s", free.rates, note=free.note),
        row(
            "pod lives per CPU-second of the scripted API itself",
            "/s",
            api,
            note="it must be much cheaper than the agent",
        ),
    ]
    one = await pace(1, SLOTS, 2)
    paces = {replicas: await pace(replicas, SLOTS, 3) for replicas in SCALE}
    # One replica is measured before and after the runs of several replicas, because the load by other processes on the
    # machine changes slowly.
    one = one.joined(await pace(1, SLOTS, 2))
    for replicas, many in paces.items():
        rows += scaling_rows(replicas, many, one)
    for kind, limit, order in KINDS:
        rows.append(per_action(kind, limit, await requests_per_action(**order)))
    return rows


def scaling_rows(replicas: int, many: Pace, one: Pace, where: str = "") -> Sequence[Row]:
    """Return the rows that compare several replicas with one: by rate, and per CPU second."""
    # Only two replicas on the scripted API server have a target. Other API servers use more CPU than the agents, and so
    # limit the rate.
    target = f">= {WANTED}" if replicas == WANTED_OF and not where else ""
    by_rate = median(many.busy) < BUSY
    # Every sample of several replicas is compared with the same number: the median rate of one replica.
    rates, own = many.rates, [one.rate] * len(many.rates)
    per_cpu = [replicas / each for each in many.cpu]
    what = ", ".join(filter(None, [f"{replicas} replicas / one", where]))
    return [
        row(f"actions/s, {what}", "/s", rates, floor=own, target=target if by_rate else "", note=many.note),
        row(
            f"actions per CPU-second, {what}, times {replicas}",
            "/CPU-s",
            per_cpu,
            floor=[one.per_cpu] * len(per_cpu),
            target="" if by_rate else target,
            note="counts where the machine is over 80 % busy",
        ),
    ]


async def requests_per_action(**order: Any) -> dict[str, float]:
    """Run COUNTED actions to their end and return the number of API requests per action.

    The keys are the verb and resource of a request, as the scripted API server has counted them.
    """
    async with bench_setup() as setup:
        await setup.agent(slots=COUNTED)
        before = await setup.api.ask()
        await setup.scheduler.ask(give=LIFE, count=COUNTED, **order)
        await setup.until(lambda seen: seen["ends"].get("finished") == COUNTED and seen["running"] == [0])
        after = await setup.api.ask()
    asked = {verb: count - before["requests"].get(verb, 0) for verb, count in after["requests"].items()}
    return {verb: count / COUNTED for verb, count in asked.items() if count}


def per_action(kind: str, limit: int, asked: dict[str, float]) -> Row:
    """Return the row that compares the number of API requests per action with `limit`.

    `asked` has the requests per action by verb and resource. The number excludes requests that idle agents send too,
    for Leases and watches. The row's note names these requests.
    """
    apart = {verb for verb in asked if verb.endswith(" leases") or verb.startswith(("watch ", "list "))}
    own = {verb: count for verb, count in asked.items() if verb not in apart}
    note = ", ".join(f"{verb} {count:.2f}" for verb, count in own.items())
    what = f"API requests per action, {kind}"
    return row(what, "", [sum(own.values())], target=f"<= {limit}", note=f"{note}; apart: {', '.join(apart) or 'none'}")
