"""Growth of one replica over 10,000 actions.

The experiment measures memory, tasks and sockets of the idle agent, before and after these actions.
"""

from __future__ import annotations

import time

from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import Agent, BenchSetup, Load, bench_setup

ACTIONS = 10_000
WARM = 1_000
SLOTS = 60
LIFE = "life=0.3 start=0.05"
MIB = 1 << 20


async def measure(namespace: str = "") -> list[Row]:
    """Run the experiment of this module, which takes about two minutes. Return the rows."""
    async with bench_setup() as setup:
        agent = await setup.agent(slots=SLOTS, cluster={"requests_per_second": 5000.0})
        await run_actions(setup, WARM)
        rss, sockets, tasks = await resources(agent)
        load, began, cpu = Load(), time.monotonic(), agent.costs.cpu
        await run_actions(setup, ACTIONS)
        took, busy, used = time.monotonic() - began, load.share(), agent.costs.cpu - cpu
        rss_after, sockets_after, tasks_after = await resources(agent)
        api = await setup.api.ask()
        note = f"after {WARM} and after {WARM + ACTIONS}: {rss:.1f} and {rss_after:.1f} MiB; machine {busy:.0%} busy"
        what = f"over {ACTIONS} actions"
        cost = f"{used / ACTIONS * 1e3:.1f} ms CPU per action"
        return [
            row(f"memory grown {what}", "MiB", [rss_after - rss], target="<= 5", note=note),
            row(f"tasks grown {what}", "", [tasks_after - tasks], target="<= 0", note=f"{tasks:.0f} when idle"),
            row(f"sockets grown {what}", "", [sockets_after - sockets], target="<= 0", note=f"{sockets} when idle"),
            row(f"pods left {what}", "", [api["made"] - api["gone"]], target="<= 0"),
            row(f"actions/s {what} of 0.3 s, no limit of requests", "/s", [ACTIONS / took], note=cost),
        ]


async def run_actions(setup: BenchSetup, count: int) -> None:
    """Run `count` short actions and wait until all of them have ended."""
    before = (await setup.scheduler.ask())["ends"].get("finished", 0)
    await setup.until(
        lambda seen: seen["ends"].get("finished", 0) == before + count and not any(seen["running"]),
        seconds=300,
        give=LIFE,
        count=count,
    )


async def resources(agent: Agent) -> tuple[float, int, float]:
    """Return three resources of an agent: resident memory in MiB, number of sockets and number of asyncio tasks."""
    costs = agent.costs
    return costs.rss / MIB, costs.sockets, await agent.metric("asyncio_tasks")
