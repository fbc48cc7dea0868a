"""Throughput of a log and of files, compared with `kubectl logs`, `kubectl exec cat` and `kubectl exec tar`.

The agent and kubectl copy the same files of the same container, one after the other. For a log, the agent and kubectl
each follow a container that writes as fast as it can, on a node with the default size of log files. `kubectl exec cat`
then reads the file of a log that is complete.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING

from agent.protocol.wire import agent_pb2 as wire
from tests.bench import bare, machine
from tests.bench.minimal_scheduler import minimal_scheduler
from tests.bench.observer import Observer
from tests.bench.rows import Row, row
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX

if TYPE_CHECKING:
    from tests.bench.minimal_scheduler import Agent, MinimalScheduler

TIMES = 5
MEGABYTES = 100
LINE = 80
LINES = MEGABYTES * 1_000_000 // LINE
# `|| true` keeps the command successful with `set -o pipefail`. `yes` fails by SIGPIPE when `head` has ended.
LOG = f"{{ yes {'x' * (LINE - 1)} || true; }} | head -n {LINES}"

BIG = 500
MANY = 5_000
HOLD = "echo made; until test -e go; do sleep 0.1; done; rm go"
ONE = f"dd if=/dev/urandom of=big bs=1M count={BIG} 2>/dev/null; {HOLD}"
SMALL = f"""
head -c 1024 /dev/urandom > /tmp/one
mkdir many; i=0; while [ $i -lt {MANY} ]; do cp /tmp/one many/$i; i=$((i + 1)); done
{HOLD}
"""
READ_LOG = """
kubectl create -f "$FILE" >/dev/null
follow() { kubectl logs -f bulk 2>/dev/null | (dd bs=1 count=1 2>/dev/null; date +%s.%N; wc -c; date +%s.%N); }
until follow > "$FILE.times"; grep -q ^x "$FILE.times"; do :; done
cat "$FILE.times"
kubectl delete pod bulk --grace-period=2 --wait >/dev/null
"""
READ_FILE = """
date +%s.%N
kubectl exec "$1" -c helper -- cat /log/log >/dev/null
date +%s.%N
"""
READ_FILES = """
date +%s.%N
kubectl exec "$1" -c helper -- tar cf - -C /workspace . >/dev/null
date +%s.%N
"""
GO = 'kubectl exec "$1" -c helper -- touch /workspace/go'


async def measure(namespace: str) -> list[Row]:
    """Measure the copy of a large log, of a large file, and of many small files. Return the rows."""
    kube.provider("log-limit", "10Mi")  # The default of kubelets.
    try:
        async with minimal_scheduler(namespace) as scheduler, Observer(namespace) as seen:
            agent = await scheduler.agent()
            rows = await logs(scheduler, agent, seen)
    finally:
        kube.provider("log-limit", "default")
    async with minimal_scheduler(namespace) as scheduler, Observer(namespace) as seen:
        agent = await scheduler.agent()
        rows.append(await files(scheduler, agent, seen, f"one file of {BIG} MiB", ONE, BIG, "MiB/s", ">= 0.95"))
        rows.append(await files(scheduler, agent, seen, f"{MANY:,} files of 1 KiB", SMALL, MANY, "files/s", ">= 0.4"))
    return rows


async def logs(scheduler: MinimalScheduler, agent: Agent, seen: Observer) -> list[Row]:
    """Measure the copy of a log that is written at full speed. Return the rows.

    The agent, `kubectl logs -f` and `kubectl exec cat` each copy one such log, one after the other.
    """
    own, cat, followed, kept, cpu = [], [], [], [], []
    for _ in range(TIMES):
        used = agent.cpu
        given = await scheduler.give(BUSYBOX, LOG).finished()
        cpu.append(1000 * (agent.cpu - used) / MEGABYTES)
        own.append(given.finished_at - given.stages[wire.STAGE_COMMANDS])
        await scheduler.idle()
        assert given.log_bytes == LINES * LINE, given.log_bytes
        cat.append(await raw_cat(scheduler, seen))
        seconds, size = await raw_log(scheduler)
        followed.append(seconds)
        kept.append(100 * size / (LINES * LINE))
    what = f"log of {MEGABYTES} MB in lines of {LINE} bytes"
    loss = f"kubectl logs -f: {statistics.median(followed):.1f} s, {statistics.median(kept):.0f} % of the bytes"
    return [
        row(f"{what}, until its end is known, none missing", "s", own, floor=cat, target="<= 1.5", note=loss),
        row(f"{what}: CPU of the agent per MB", "ms", cpu, target="<= 8"),
    ]


async def raw_cat(scheduler: MinimalScheduler, seen: Observer) -> float:
    """Write a complete log, then read its file with `kubectl exec cat`. Return the seconds of the read."""
    given = scheduler.give(BUSYBOX, f"{LOG}\n{HOLD}")
    await given.until(lambda each: b"made" in each.tail)
    name = seen.names[given.action.action_id]
    output = await bare.sh(scheduler.namespace, READ_FILE, name)
    await bare.sh(scheduler.namespace, GO, name)
    await given.finished()
    await scheduler.idle()
    began, ended = map(float, output.split())
    return ended - began


async def raw_log(scheduler: MinimalScheduler) -> tuple[float, int]:
    """Follow the log of a plain pod with kubectl.

    Return the seconds from the first byte of the log to the last byte, and the number of bytes.
    """
    file = scheduler.folder / "bulk.json"
    file.write_text(json.dumps(bare.pod("bulk", BUSYBOX, LOG)))
    output = await bare.sh(scheduler.namespace, READ_LOG, FILE=str(file))
    first, size, last = output.split()
    return float(last) - float(first.removeprefix("x")), int(size) + 1


async def files(
    scheduler: MinimalScheduler,
    agent: Agent,
    seen: Observer,
    what: str,
    command: str,
    count: int,
    unit: str,
    target: str,
) -> Row:
    """Copy the same files out of the same container, first by `kubectl exec tar`, then by the agent. Return the row.

    `command` is the shell command that creates the files. `unit` is the unit of the rate, such as `MiB/s`. `count` is
    the size or the number of the files, in the unit before the slash.
    """
    own, raw, cpu = [], [], []
    for _ in range(TIMES):
        given = scheduler.give(BUSYBOX, command, artifacts=wire.ArtifactRules())
        await given.until(lambda each: b"made" in each.tail)
        name = seen.names[given.action.action_id]
        idle, used = machine.busy(), agent.cpu
        output = await bare.sh(scheduler.namespace, READ_FILES, name)
        between, used_raw, own_server = machine.busy(), agent.cpu, time.process_time()
        await bare.sh(scheduler.namespace, GO, name)
        await given.finished()
        began, ended = map(float, output.split())
        raw.append(count / (ended - began))
        own.append(count / (given.finished_at - given.stages[wire.STAGE_ARTIFACTS]))
        spent = (machine.busy() - between, agent.cpu - used_raw, time.process_time() - own_server)
        cpu.append((between - idle - (used_raw - used), *spent))
        await scheduler.idle()
    raw_cpu, own_cpu, agent_cpu, server_cpu = (statistics.median(each) for each in zip(*cpu, strict=True))
    note = f"CPU-seconds: raw {raw_cpu:.1f}, own {own_cpu:.1f} (agent {agent_cpu:.1f}, scheduler {server_cpu:.1f})"
    return row(what, unit, own, floor=raw, target=target, note=note)
