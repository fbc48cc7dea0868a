"""Actions a second of one, two and four replicas, and what one action costs: CPU of the agent, requests to the API.

Pods live one second, against the scripted API. How fast one replica is with its default limits is one figure; how well
more of them add up is measured at a load of which the machine has room for four, as a rate, and at the most that each
can do per CPU-second.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.bench.rows import Row, row
from tests.bench.scripted.bed import Bed, Load, bed

if TYPE_CHECKING:
    from collections.abc import Sequence

Object = dict[str, Any]

LIFE = "life=1"
WARM = 3.0
WINDOW = 4.0
BUSY = 0.8
SCALE = {2: 1.95, 4: 3.9}
UNLIMITED: Object = {"requests_per_second": 5000.0}
PER_ACTION = ("create pods", "get pods/log", "create pods/exec", "delete pods", "create secrets", "get pods")


@dataclass
class Pace:
    """What was seen in windows of a few seconds: actions/s, agents' CPU seconds per action, the API's, busy share."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    api_cpu: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    requests: dict[str, float] = field(default_factory=dict)
    most: int = 0
    failed: int = 0

    @property
    def rate(self) -> float:
        """Actions a second."""
        return median(self.rates)

    @property
    def per_cpu(self) -> float:
        """Actions per CPU-second of the agents."""
        return 1 / median(self.cpu)

    @property
    def note(self) -> str:
        """The load of the machine, and the agents' share."""
        return f"machine {median(self.busy):.0%} busy, {median(self.cpu) * 1e3:.1f} ms CPU of agents per action"


async def pace(replicas: int, slots: int, windows: int, cluster: Object | None = None, **order: Any) -> Pace:
    """Run replicas with full slots and look at them for some windows."""
    async with bed() as under:
        for _ in range(replicas):
            await under.begin(slots=slots, cluster=cluster or {})
        await under.until(lambda seen: seen["ready"] == replicas)
        await under.scheduler.ask(give=LIFE, count=-1, **order)
        await asyncio.sleep(WARM)
        found = await watched(under, windows)
        await under.scheduler.ask(stop=True)
        await under.until(lambda seen: not any(seen["running"]))
        found.failed = (await under.scheduler.ask())["ends"].get("failed", 0)
        return found


async def watched(under: Bed, windows: int) -> Pace:
    """Look at what runs for some windows."""
    found, load = Pace(), Load()
    first = before = await under.api.ask()
    cpu, began = under.cpu, time.monotonic()
    for _ in range(windows):
        await asyncio.sleep(WINDOW)
        after = await under.api.ask()
        now, used = time.monotonic(), under.cpu
        done = max(1, after["gone"] - before["gone"])
        found.rates.append(done / (now - began))
        found.cpu.append((used - cpu) / done)
        found.api_cpu.append((after["cpu"] - before["cpu"]) / done)
        found.busy.append(load.share())
        before, cpu, began = after, used, now
    done = max(1, before["gone"] - first["gone"])
    asked = {verb: count - first["requests"].get(verb, 0) for verb, count in before["requests"].items()}
    found.requests = {verb: count / done for verb, count in asked.items() if count}
    found.most = before["most"]
    return found


async def measure(namespace: str = "") -> list[Row]:
    """Measure all of it; takes about two minutes."""
    default = await pace(1, 100, 4)
    free = await pace(1, 300, 4, UNLIMITED)
    api = [1 / each for each in free.api_cpu]
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
    paces = {replicas: await pace(replicas, 20, 3) for replicas in (1, 2, 4)}
    for replicas in (2, 4):
        rows += scaled(replicas, paces[replicas], paces[1])
    rows.append(per_action("no files", 3, paces[1]))
    rows.append(per_action("files", 4, await pace(1, 20, 2, files=True)))
    rows.append(per_action("secrets", 4, await pace(1, 20, 2, secrets=True)))
    apart = {verb: count for verb, count in paces[1].requests.items() if verb not in PER_ACTION}
    note = ", ".join(f"{verb} {count:.3f}" for verb, count in sorted(apart.items()))
    rows.append(row("other requests per action (Leases, watches)", "", [sum(apart.values())], note=note))
    return rows


def scaled(replicas: int, many: Pace, one: Pace) -> Sequence[Row]:
    """Return how well replicas add up: by rate while the machine has room, and per CPU-second."""
    target = f">= {SCALE[replicas]:g}"
    by_rate = median(many.busy) < BUSY
    # One replica's median is the floor of each window of the many.
    rates, own = many.rates, [one.rate] * len(many.rates)
    per_cpu = [replicas / each for each in many.cpu]
    what = f"{replicas} replicas / one, 20 slots each"
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


def per_action(kind: str, limit: int, seen: Pace) -> Row:
    """Return the requests that one action costs, as the API counted them."""
    asked = {verb: seen.requests.get(verb, 0.0) for verb in PER_ACTION}
    note = ", ".join(f"{verb} {count:.2f}" for verb, count in asked.items() if count)
    # What began before the window and ended in it, or the other way round, makes a hundredth.
    found = round(sum(asked.values()), 1)
    return row(f"API requests per action, {kind}", "", [found], target=f"<= {limit}", note=note)
