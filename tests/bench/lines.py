"""Delay of a log line from the container to the scheduler, compared with a raw follower of the same container.

A raw follower is a plain log request of the benchmark, to the same API server and with the same client as the agent's
request. Raw followers read a few of the containers. The time that the agent adds is the agent's delay minus the delay
of the raw follower. The writers start no process per line, so that the writers do not limit the result.

The experiment with 200 sessions uses a scripted API server (scripted/api.py), because a node of two cores cannot
deliver 4,000 lines a second. On such a node, the raw followers were half a second late too, and the kubelet ended their
requests.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp

from agent.domain.errors import ClusterError
from agent.protocol.wire import agent_pb2 as wire
from tests.bench.minimal_scheduler import minimal_scheduler
from tests.bench.observer import Observer, api
from tests.bench.rows import Row, percentile, row
from tests.bench.scripted.bench_setup import Load, bench_setup
from tests.e2e.lab import BUSYBOX

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.cluster.api.client import Client
    from tests.bench.minimal_scheduler import Agent, Given, MinimalScheduler

SESSIONS = (1, 50)
MANY = 200
RAMP = 10.0
SECONDS = 10
PER_SECOND = 20
RAW = 5
MARKER = 0x1E
FOREVER = aiohttp.ClientTimeout(total=None)
# A shell script that writes lines with the current time. It begins at the time START, when all writers run and the
# agent follows all logs. `wait_for` waits for a number of seconds.
WRITER = f"""
wait_for() {{ read -t "$1" -r x <>/dev/ptmx || true; }}
while [ $EPOCHSECONDS -lt START ]; do wait_for 0.5; done
i=0; while [ $i -lt {SECONDS * PER_SECOND} ]; do echo "$EPOCHREALTIME"; wait_for {1 / PER_SECOND}; i=$((i+1)); done
"""


@dataclass(eq=False)
class Lines:
    """The arrival time of each line of one log.

    The text of a line is the time at which the container wrote the line.
    """

    came: dict[bytes, float] = field(default_factory=dict)
    rest: bytes = b""

    def take(self, data: bytes, now: float) -> None:
        """Record `now` as the arrival time of each complete line in a piece of the log.

        In a raw log, the header of a frame can precede a line. The header ends with BEL and is not part of the line.
        """
        *whole, self.rest = (self.rest + data).split(b"\n")
        for line in whole:
            self.came.setdefault(line.rpartition(b"\a")[2], now)

    @property
    def late(self) -> list[float]:
        """Return the delays of the lines in ms, from the time in the line to the line's arrival.

        A raw log also has lines with markers of the supervisor. The result has no delay for these lines.
        """
        return [1000 * (now - float(line)) for line, now in self.came.items() if line and line[0] != MARKER]


@dataclass(frozen=True)
class Trickle:
    """Results of one run of the experiment, with delays in ms.

    `own` are the delays of lines that the agent has sent, and `raw` the delays of lines at the raw followers. `more`
    has the difference `own` - `raw` for each line that has arrived both ways. `cpu` is the CPU time of the agent per
    line in µs.
    """

    own: list[float]
    raw: list[float]
    more: list[float]
    cpu: float


async def measure(namespace: str) -> list[Row]:
    """Measure a few sessions on the cluster and many sessions on the scripted API server. Return the rows."""
    rows = []
    for sessions in SESSIONS:
        async with minimal_scheduler(namespace) as scheduler:
            agent = await scheduler.agent()
            found = await trickle(scheduler, agent, sessions)
        limits = ("<= 10", "<= 50") if sessions == 50 else ("", "")
        for percent, target in zip((50, 99), limits, strict=True):
            own, raw, more = (percentile(each, percent) for each in (found.own, found.raw, found.more))
            what = f"log line, {sessions} sessions x {PER_SECOND}/s: agent later than raw, p{percent}"
            rows.append(row(what, "ms", [more], target=target, note=f"agent {own:.1f}, raw {raw:.1f}"))
        rows.append(row(f"log line, {sessions} sessions: CPU of the agent per line", "us", [found.cpu]))
    return [*rows, *await many()]


async def many() -> list[Row]:
    """Measure MANY sessions at once on the scripted API server. Return the rows."""
    async with bench_setup() as setup:
        agent = await setup.agent(slots=MANY)
        await setup.scheduler.ask(give=f"life=3600 every={1 / PER_SECOND}", count=MANY, name="quiet")
        await setup.until(lambda seen: seen["running"] == [MANY])
        await asyncio.sleep(RAMP)
        load, before = Load(), await setup.scheduler.ask(forget=True)
        used = agent.costs.cpu
        await asyncio.sleep(SECONDS)
        used, after = agent.costs.cpu - used, await setup.scheduler.ask()
    lines = MANY * PER_SECOND * SECONDS
    late = {part: 1000 * after["latency"][part] for part in ("0.5", "0.99")}
    size = (after["log_bytes"] - before["log_bytes"]) / lines
    note = f"scripted API; machine {load.share():.0%} busy, {size:.0f} bytes a line"
    what = f"log line, {MANY} sessions"
    return [
        row(f"{what} x {PER_SECOND}/s: written -> received, p50", "ms", [late["0.5"]], note=note),
        row(f"{what} x {PER_SECOND}/s: written -> received, p99", "ms", [late["0.99"]], note=note),
        row(f"{what}: CPU of the agent per line", "us", [1e6 * used / lines]),
    ]


async def trickle(scheduler: MinimalScheduler, agent: Agent, sessions: int) -> Trickle:
    """Run `sessions` sessions that write lines at a fixed rate. Raw followers also read a few of the logs.

    Return the delays of the lines.
    """
    patience = 10 + sessions * 2 // 5
    start = int(time.time()) + patience
    own = [Lines() for _ in range(sessions)]
    raw = [Lines() for _ in range(min(RAW, sessions))]
    async with Observer(scheduler.namespace) as seen, api(scheduler.namespace) as client, AsyncExitStack() as stack:
        given = [scheduler.give(BUSYBOX, WRITER.replace("START", str(start))) for _ in own]
        for each, lines in zip(given, own, strict=True):
            each.on_log = lines.take
        for each in given:
            await each.until(lambda this: this.stages.get(wire.STAGE_COMMANDS), 200)
        for each, lines in zip(given, raw, strict=False):
            await stack.enter_async_context(raw_follower(client, seen, each, lines))
        if time.time() > start:
            raise AssertionError(f"{sessions} sessions took longer to start than {patience} s")
        await asyncio.sleep(start - time.time())
        used = agent.cpu
        for each in given:
            await each.finished()
        cpu = agent.cpu - used
        await scheduler.idle()
    return result(own, raw, cpu)


def result(own: list[Lines], raw: list[Lines], cpu: float) -> Trickle:
    """Combine the lines of all logs: those that the agent has sent (`own`) and those of the raw followers (`raw`).

    `cpu` is the CPU seconds of the agent.
    """
    lines = sum(len(each.late) for each in own)
    more = [
        1000 * (mine.came[line] - now)
        for mine, theirs in zip(own, raw, strict=False)
        for line, now in theirs.came.items()
        # Lines with markers are only in the raw log, because the agent sends no markers to the scheduler.
        if line in mine.came
    ]
    late = [each for mine in own for each in mine.late]
    return Trickle(late, [each for theirs in raw for each in theirs.late], more, 1e6 * cpu / lines)


@asynccontextmanager
async def raw_follower(client: Client, seen: Observer, given: Given, lines: Lines) -> AsyncIterator[None]:
    """Follow the log of an action while the block runs, with a plain request for the log of container `helper`.

    Only record the arrival of the lines in `lines`. The request uses the same client as the agent's requests.
    """

    async def follow() -> None:
        path = f"/api/v1/namespaces/{seen.namespace}/pods/{seen.names[given.action.action_id]}/log"
        query = {"container": "helper", "follow": "true"}
        while given.outcome is None:  # A busy kubelet can end the request early, so repeat the request.
            async with client.stream("get", "pods/log", path, query=query, timeout=FOREVER) as answer:
                async for data, _ in answer.content.iter_chunks():
                    lines.take(data, time.time())

    following = asyncio.create_task(follow(), name="raw follower")
    try:
        yield
    finally:
        following.cancel()
        # The last log request fails with ClusterError if the pod is deleted before the request.
        with suppress(asyncio.CancelledError, ClusterError):
            await following
