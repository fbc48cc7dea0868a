"""A hundred trivial actions at once, compared with a hundred plain pods that one `kubectl create -f` creates.

Twenty actions at once show what an action costs the agent itself on a machine that is not full.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from tests.bench import bare, machine
from tests.bench.minimal_scheduler import minimal_scheduler
from tests.bench.rows import Row, row
from tests.e2e.lab import BUSYBOX

if TYPE_CHECKING:
    from tests.bench.minimal_scheduler import Agent, MinimalScheduler

COUNT, FEW = 100, 20
TIMES, FEW_TIMES = 2, 4
WAIT = """
kubectl create -f "$FILE" >/dev/null
kubectl wait pod -l bare=yes --for=jsonpath='{.status.phase}'=Succeeded --timeout=200s >/dev/null
date +%s.%N
kubectl delete pod -l bare=yes --grace-period=2 --wait >/dev/null
"""


async def measure(namespace: str) -> list[Row]:
    """Measure the actions and the plain pods in turn. Return the rows."""
    own: list[tuple[float, float, float, float]] = []
    floor: list[tuple[float, float, float]] = []
    async with minimal_scheduler(namespace) as scheduler:
        agent = await scheduler.agent()
        # The first actions of an agent load code. They do not count.
        few = [await actions(scheduler, agent, FEW) for _ in range(1 + FEW_TIMES)][1:]
        for number in range(TIMES):
            for which in (0, 1) if number % 2 else (1, 0):
                if which:
                    own.append(await actions(scheduler, agent, COUNT))
                else:
                    floor.append(await pods(scheduler))
    ends, gone, cpu, agent_cpu = zip(*own, strict=True)
    what = f"{COUNT} actions at once"
    return [
        row(f"{what}, until all ends are known", "s", ends, floor=[each[0] for each in floor], target="<= 1.2"),
        row(f"{what}, until all are gone", "s", gone, floor=[each[1] for each in floor]),
        row(
            f"{what}: CPU of the machine for each", "s", cpu, target="<= 0.6", note=f"a bare pod {median(floor):.2f} s"
        ),
        row(f"{what}: CPU of the agent for each", "ms", [1000 * each for each in agent_cpu]),
        row(
            f"{FEW} actions at once: CPU of the agent for each", "ms", [1000 * each[3] for each in few], target="<= 20"
        ),
    ]


def median(floor: list[tuple[float, float, float]]) -> float:
    """Return the median CPU seconds of the machine per plain pod. `floor` has the results of `pods`."""
    return row("", "s", [each[2] for each in floor]).measured


async def actions(scheduler: MinimalScheduler, agent: Agent, count: int) -> tuple[float, float, float, float]:
    """Run `count` actions at once.

    Return the seconds until the last outcome and until the last deletion of a pod, and the CPU seconds per action of
    the machine and of the agent.
    """
    busy, used, began = machine.busy(), agent.cpu, time.time()
    all_given = [scheduler.give(BUSYBOX, "echo hello") for _ in range(count)]
    for given in all_given:
        await given.finished()
    ended = max(given.finished_at for given in all_given)
    gone = await scheduler.idle()
    return ended - began, gone - began, (machine.busy() - busy) / count, (agent.cpu - used) / count


async def pods(scheduler: MinimalScheduler) -> tuple[float, float, float]:
    """Run COUNT plain pods at once.

    Return the seconds until the last pod has ended and until the last pod is deleted, and the CPU seconds of the
    machine per pod.
    """
    file = scheduler.folder / "pods.json"
    items = [bare.pod(f"bare-{number}", BUSYBOX, "echo hello") for number in range(COUNT)]
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    busy, began = machine.busy(), time.time()
    output = await bare.sh(scheduler.namespace, WAIT, FILE=str(file))
    return float(output) - began, time.time() - began, (machine.busy() - busy) / COUNT
