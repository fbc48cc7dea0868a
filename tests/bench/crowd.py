"""500 sessions at once on one replica: memory, CPU, connections and tasks, compared with the idle agent.

A scripted API server (scripted/api.py) runs each pod for 35 s, so that all pods run at the same time. Each pod writes a
line every two seconds.
"""

from __future__ import annotations

import asyncio
import time

from tests.bench.rows import Row, row
from tests.bench.scripted.bench_setup import Load, bench_setup

SESSIONS = 500
SCRIPT = "life=35 every=2"
SETTLE = 8.0
WINDOW = 3.0
WINDOWS = 5
MIB = 1 << 20


async def measure(namespace: str = "") -> list[Row]:
    """Run the experiment of this module, which takes about a minute. Return the rows."""
    async with bench_setup() as setup:
        agent = await setup.agent(slots=SESSIONS)
        idle = agent.costs
        began = time.monotonic()
        await setup.scheduler.ask(give=SCRIPT, count=SESSIONS, name="quiet")
        await setup.until(lambda seen: seen["running"] == [SESSIONS] and not seen["ends"])
        await setup.api.until(lambda seen: seen["alive"] == SESSIONS)
        all_there = time.monotonic() - began
        await asyncio.sleep(SETTLE)
        await setup.scheduler.ask(forget=True)
        rss: list[float] = []
        cpu: list[float] = []
        sockets: list[float] = []
        load = Load()
        for _ in range(WINDOWS):
            before, at = agent.costs, time.monotonic()
            await asyncio.sleep(WINDOW)
            after = agent.costs
            cpu.append((after.cpu - before.cpu) / (time.monotonic() - at))
            rss.append(after.rss / MIB)
            sockets.append(after.sockets)
        busy, tasks = load.share(), await agent.metric("asyncio_tasks")
        late = (await setup.scheduler.ask())["latency"]
        seen = await setup.until(lambda seen: seen["ends"].get("finished") == SESSIONS and seen["running"] == [0])
        note = (
            f"machine {busy:.0%} busy, all pods running after {all_there:.1f} s, {seen['ends'].get('failed', 0)} failed"
        )
        each = [(size - idle.rss / MIB) * 1024 / SESSIONS for size in rss]
        late_note = f"p99 {late['0.99'] * 1e3:.0f} ms, from the scripted API to the scheduler"
        return [
            row(f"memory of {SESSIONS} sessions at once", "MiB", rss, target="<= 350", note=note),
            row(f"CPU of {SESSIONS} sessions at once, a line each 2 s", "cores", cpu, target="<= 1", note=note),
            row("memory per session", "KiB", each, note="over idle"),
            row(f"open connections, {SESSIONS} sessions", "", sockets, note=f"idle: {idle.sockets}"),
            row(f"tasks, {SESSIONS} sessions", "", [tasks]),
            row(f"log line written -> received, {SESSIONS} sessions, p50", "ms", [late["0.5"] * 1e3], note=late_note),
            row("memory after all have ended", "MiB", [agent.costs.rss / MIB], note=f"before: {idle.rss / MIB:.0f}"),
        ]
