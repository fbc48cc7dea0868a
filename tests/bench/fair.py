"""Whether one action that floods its log, or sends a huge file, slows the log lines of the others.

Twenty quiet sessions write 20 lines a second each; how late their lines are is taken alone, beside a flood, alone, and
beside a file, against the scripted API. A line carries the moment at which it was written.
"""

from __future__ import annotations

import asyncio
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.bench.rows import Row
from tests.bench.scripted.bed import Bed, Machine, bed
from tests.bench.scripted.numbers import at_most, plain, spread

if TYPE_CHECKING:
    from collections.abc import Mapping

QUIET = 20
SECONDS = 5.0
ROUNDS = 3
LIFE = 3600
LIMIT = 50.0
MB = 1_000_000


async def measure() -> list[Row]:
    """Measure all of it; takes a minute and a half."""
    async with bed() as under:
        await under.agent(
            slots=QUIET + 1,
            logs={"max_total": 1 << 40},
            artifacts={"max_file_size": 1 << 40, "max_total_size": 1 << 40},
        )
        await under.scheduler.ask(give=f"life={LIFE} every=0.05", count=QUIET, name="quiet")
        await asyncio.sleep(2)
        alone: list[float] = []
        beside: dict[str, list[float]] = {"flood": [], "file": []}
        speed: dict[str, list[float]] = {"flood": [], "file": []}
        busy: list[float] = []
        for _ in range(ROUNDS):
            for kind, order in KINDS.items():
                alone.append(await late(under))
                machine = Machine()
                before = await under.scheduler.ask(name=kind, **order)
                beside[kind].append(await late(under))
                after = await under.scheduler.ask()
                busy.append(machine.busy())
                speed[kind].append(sum(after[key] - before[key] for key in ("log_bytes", "file_bytes")) / SECONDS / MB)
                await under.until(lambda seen: seen["running"] == [QUIET])
        base = median(alone)
        rows = [
            plain(
                f"a quiet line's latency, p99, {QUIET} sessions at 20 lines/s, alone",
                "ms",
                alone,
                "from the scripted API's write to the scheduler",
            )
        ]
        for kind, values in beside.items():
            added = [each - base for each in values]
            note = f"{median(values):.0f} ms beside {median(speed[kind]):.0f} MB/s; machine {median(busy):.0%} busy"
            row = at_most(f"p99 of a quiet line that a {kind} beside it adds", "ms", LIMIT, added, note)
            rows.append(Row(row.what, row.unit, row.target, base, row.measured, spread(values), None, row.met, note))
        return rows


KINDS: Mapping[str, dict[str, Any]] = {
    "flood": {"give": f"life={SECONDS + 1} flood=1 size=200"},
    "file": {"give": "life=0.2 start=0.1 file=600000000", "files": True},
}


async def late(under: Bed) -> float:
    """Return the 99th percentile of how late quiet lines are from now on, in ms."""
    await asyncio.sleep(0.7)
    await under.scheduler.ask(forget=True)
    await asyncio.sleep(SECONDS - 0.7)
    seen = await under.scheduler.ask()
    return float(seen["latency"]["0.99"]) * 1e3
