"""Time from the start of an agent to its registration, and CPU and memory of an idle agent."""

from __future__ import annotations

import asyncio

from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import Load, bench_setup

TIMES = 15
SETTLE = 0.5
MIB = 1 << 20


async def measure(namespace: str = "") -> list[Row]:
    """Run the experiment of this module, which takes about half a minute. Return the rows."""
    seconds: list[float] = []
    rss: list[float] = []
    cpu: list[float] = []
    load = Load()
    async with bench_setup() as setup:
        for _ in range(TIMES):
            agent = await setup.agent(slots=10)
            seen = await setup.scheduler.ask()
            seconds.append(seen["registered"][-1] - agent.asked)
            await asyncio.sleep(SETTLE)
            costs = agent.costs
            rss.append(costs.rss / MIB)
            cpu.append(costs.cpu)
            await setup.end(agent)
    note = f"machine {load.share():.0%} busy"
    return [
        row("start to registered", "s", seconds, target="<= 1.5", note=note),
        row("CPU of a start", "s", cpu, note=note),
        row("memory of an idle agent", "MiB", rss, target="<= 60", note="resident"),
    ]
