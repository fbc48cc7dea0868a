"""How much one action with a very large log, or with a huge file, delays the log lines of other actions.

Twenty quiet sessions write 20 lines a second each, on a scripted API server (scripted/api.py). The experiment measures
the delay of these lines in turn: without another action, during an action that writes its log at full speed (`flood`),
without another action, and during the copy of a huge file. Each line contains the time at which the pod wrote the line.
"""

from __future__ import annotations

import asyncio
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import BenchSetup, Load, bench_setup

if TYPE_CHECKING:
    from collections.abc import Mapping

QUIET = 20
SECONDS = 5.0
ROUNDS = 2
LIFE = 3600
MB = 1_000_000


async def measure(namespace: str = "") -> list[Row]:
    """Run the experiment of this module, which takes about a minute and a half. Return the rows."""
    async with bench_setup() as setup:
        await setup.agent(
            slots=QUIET + 1,
            logs={"max_total": 1 << 40},
            artifacts={"max_file_size": 1 << 40, "max_total_size": 1 << 40},
        )
        await setup.scheduler.ask(give=f"life={LIFE} every=0.05", count=QUIET, name="quiet")
        await asyncio.sleep(2)
        alone: list[list[float]] = []
        beside: dict[str, list[float]] = {"flood": [], "file": []}
        speed: dict[str, list[float]] = {"flood": [], "file": []}
        busy: list[float] = []
        for _ in range(ROUNDS):
            alone.append([])
            for kind, order in KINDS.items():
                alone[-1].append(await quiet_delay(setup))
                load = Load()
                before = await setup.scheduler.ask(name=kind, **order)
                beside[kind].append(await quiet_delay(setup))
                after = await setup.scheduler.ask()
                busy.append(load.share())
                speed[kind].append(sum(after[key] - before[key] for key in ("log_bytes", "file_bytes")) / SECONDS / MB)
                await setup.until(lambda seen: seen["running"] == [QUIET])
        what = f"{QUIET} sessions at 20 lines/s"
        rows = [row(f"a quiet line's latency, p99, {what}, alone", "ms", [each for pair in alone for each in pair])]
        for index, (kind, values) in enumerate(beside.items()):
            added = [late - pair[index] for late, pair in zip(values, alone, strict=True)]
            note = f"{median(values):.0f} ms beside {median(speed[kind]):.0f} MB/s; machine {median(busy):.0%} busy"
            rows.append(row(f"p99 that a {kind} beside adds to a quiet line", "ms", added, target="<= 50", note=note))
        return rows


KINDS: Mapping[str, dict[str, Any]] = {
    "flood": {"give": f"life={SECONDS + 1} flood=1 size=200"},
    "file": {"give": "life=0.2 start=0.1 file=600000000", "files": True},
}


async def quiet_delay(setup: BenchSetup) -> float:
    """Wait SECONDS and measure the delays of the quiet sessions' log lines.

    Return the 99th percentile of the delays in ms.
    """
    await asyncio.sleep(0.7)
    await setup.scheduler.ask(forget=True)
    await asyncio.sleep(SECONDS - 0.7)
    seen = await setup.scheduler.ask()
    return float(seen["latency"]["0.99"]) * 1e3
