"""What 10,000 actions leave behind in one replica: memory, tasks, sockets, held before and after with nothing to do."""

from __future__ import annotations

import time

from tests.bench.rows import Row
from tests.bench.scripted.bed import Agent, Bed, Machine, bed
from tests.bench.scripted.numbers import at_most, plain

ACTIONS = 10_000
WARM = 2_000
SLOTS = 60
LIFE = "life=0.3 start=0.05"
MIB = 1 << 20


async def measure() -> list[Row]:
    """Measure it; takes two minutes."""
    async with bed() as under:
        agent = await under.agent(slots=SLOTS, cluster={"requests_per_second": 5000.0})
        await through(under, WARM)
        rss, sockets, tasks = await held(agent)
        machine, began, cpu = Machine(), time.monotonic(), agent.costs.cpu
        await through(under, ACTIONS)
        took, busy, used = time.monotonic() - began, machine.busy(), agent.costs.cpu - cpu
        rss_after, sockets_after, tasks_after = await held(agent)
        api = await under.api.ask()
        note = f"after {WARM} and after {WARM + ACTIONS}: {rss:.1f} and {rss_after:.1f} MiB; machine {busy:.0%} busy"
        return [
            at_most(f"memory grown over {ACTIONS} actions", "MiB", 5, [rss_after - rss], note),
            at_most(f"tasks grown over {ACTIONS} actions", "", 0, [tasks_after - tasks], f"{tasks:.0f} when idle"),
            at_most(f"sockets grown over {ACTIONS} actions", "", 0, [sockets_after - sockets], f"{sockets} before"),
            at_most(f"pods left of {WARM + ACTIONS} actions", "", 0, [api["made"] - api["gone"]], ""),
            plain(
                f"actions/s over {ACTIONS} actions of 0.3 s, no limit of requests",
                "/s",
                [ACTIONS / took],
                f"{used / ACTIONS * 1e3:.1f} ms CPU per action",
            ),
        ]


async def through(under: Bed, count: int) -> None:
    """Run so many actions to their end."""
    before = (await under.scheduler.ask())["ends"].get("finished", 0)
    await under.until(
        lambda seen: seen["ends"].get("finished", 0) == before + count and not any(seen["running"]),
        seconds=300,
        give=LIFE,
        count=count,
    )


async def held(agent: Agent) -> tuple[float, int, float]:
    """Return resident MiB, sockets and tasks."""
    costs = agent.costs
    return costs.rss / MIB, costs.sockets, await agent.metric("asyncio_tasks")
