"""500 sessions at once on one replica: memory, CPU, connections, tasks; and what it holds when it has nothing to do.

The pods live long enough to stand side by side and log a line every two seconds, against the scripted API.
"""

from __future__ import annotations

import asyncio
import time

from tests.bench.rows import Row
from tests.bench.scripted.bed import Machine, bed
from tests.bench.scripted.numbers import at_most, plain

SESSIONS = 500
SCRIPT = "life=35 every=2"
SETTLE = 8.0
WINDOW = 3.0
WINDOWS = 5
MIB = 1 << 20


async def measure() -> list[Row]:
    """Measure all of it; takes a minute."""
    async with bed() as under:
        agent = await under.agent(slots=SESSIONS)
        idle = agent.costs
        began = time.monotonic()
        await under.scheduler.ask(give=SCRIPT, count=SESSIONS, name="quiet")
        await under.until(lambda seen: seen["running"] == [SESSIONS] and not seen["ends"])
        await under.api.until(lambda seen: seen["alive"] == SESSIONS)
        all_there = time.monotonic() - began
        await asyncio.sleep(SETTLE)
        await under.scheduler.ask(forget=True)
        rss: list[float] = []
        cpu: list[float] = []
        sockets: list[float] = []
        machine = Machine()
        for _ in range(WINDOWS):
            before, at = agent.costs, time.monotonic()
            await asyncio.sleep(WINDOW)
            after = agent.costs
            cpu.append((after.cpu - before.cpu) / (time.monotonic() - at))
            rss.append(after.rss / MIB)
            sockets.append(after.sockets)
        busy, tasks = machine.busy(), await agent.metric("asyncio_tasks")
        seen = await under.scheduler.ask()
        seen = await under.until(lambda seen: seen["ends"].get("finished") == SESSIONS and seen["running"] == [0])
        load = f"machine {busy:.0%} busy, all pods created in {all_there:.1f} s, {seen['ends'].get('failed', 0)} failed"
        lag = seen["latency"]
        return [
            at_most(f"memory of {SESSIONS} sessions at once", "MiB", 350, rss, load),
            at_most(f"CPU of {SESSIONS} sessions at once, a line each 2 s", "cores", 1, cpu, load),
            plain(
                "memory per session", "KiB", [(each - idle.rss / MIB) * 1024 / SESSIONS for each in rss], "over idle"
            ),
            plain("open connections, 500 sessions", "", sockets, f"idle: {idle.sockets}"),
            plain("tasks, 500 sessions", "", [tasks], ""),
            plain(
                "log line written -> received, 500 sessions, p50",
                "ms",
                [lag["0.5"] * 1e3],
                f"p99 {lag['0.99'] * 1e3:.0f}",
            ),
            plain("memory after all have ended", "MiB", [agent.costs.rss / MIB], f"before: {idle.rss / MIB:.0f}"),
        ]
