"""How long an agent takes from its start to its registration, and what it holds when it has nothing to do."""

from __future__ import annotations

import asyncio

from tests.bench.rows import Row
from tests.bench.scripted.bed import Machine, bed
from tests.bench.scripted.numbers import at_most, plain

TIMES = 15
SETTLE = 0.5
MIB = 1 << 20


async def measure() -> list[Row]:
    """Measure it; takes half a minute."""
    seconds: list[float] = []
    rss: list[float] = []
    cpu: list[float] = []
    machine = Machine()
    for _ in range(TIMES):
        async with bed() as under:
            agent = await under.agent(slots=10)
            seen = await under.scheduler.ask()
            seconds.append(seen["registered"][0] - agent.asked)
            await asyncio.sleep(SETTLE)
            costs = agent.costs
            rss.append(costs.rss / MIB)
            cpu.append(costs.cpu)
    note = f"machine {machine.busy():.0%} busy"
    return [
        at_most("start to registered", "s", 1.5, seconds, note),
        plain("CPU of a start", "s", cpu, note),
        at_most("memory of an idle agent", "MiB", 75, rss, f"resident; {note}"),
    ]
