"""A long log on a real cluster, over resets of the stream and a killed agent. Each line is stored once and in order."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, Lab, until
from tests.faults.proxy import Threaded

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = 20261124
QUICK = {"cluster": {"lease_duration": "4s", "lease_renew": "1s"}}
# A shell command that writes `lines` numbered lines. After line `pause` the command waits for the file `go`. So the
# command still runs when the test kills the agent.
COUNT = (
    "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; [ $((i % 2000)) -gt 0 ] || sleep 0.1;"
    " [ $i -ne {pause} ] || while [ ! -e /workspace/go ]; do sleep 0.2; done; done"
)


@pytest.fixture
def proxy(own_lab: Lab) -> Iterator[Threaded]:
    """Yield a proxy in front of the scheduler. Every agent of the lab connects through the proxy."""
    proxy = Threaded(own_lab.address, SEED)
    own_lab.settings = {"scheduler": {"address": proxy.address, "reconnect_max": "0.5s"}}
    try:
        yield proxy
        # The agents stop before the proxy does, because without the proxy they could not deregister at the scheduler.
        for agent in own_lab.agents:
            agent.stop()
    finally:
        proxy.close()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("lines", [50_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_no_line_is_lost_doubled_or_out_of_order(own_lab: Lab, proxy: Threaded, lines: int) -> None:
    first, second = own_lab.agent(**QUICK), None
    submission = own_lab.start(
        {"count": {"image": BUSYBOX, "commands": [COUNT.format(lines=lines, pause=lines * 9 // 20)]}}
    )
    report = submission.reports["count"]
    written = [f"line {number}" for number in range(1, lines + 1)]
    size = sum(len(line) + 1 for line in written)
    breaks = 0
    for tenth in range(1, 9):
        submission.until_running("count")
        log = report.folder / "count.log"
        until(lambda: log.stat().st_size >= size * tenth // 10, f"the log did not reach {tenth} tenths", 300)  # noqa: B023
        if tenth == 4:
            second = own_lab.agent(**QUICK)
            first.kill()
            (pod,) = kube.get("pods", "-n", own_lab.namespace)
            words = ("exec", "-n", own_lab.namespace, pod["metadata"]["name"], "-c", "action", "--")
            kube.kubectl(*words, "touch", "/workspace/go")
        else:
            proxy.fault("reset")
            breaks += 1
    assert submission.wait(900)["count"].outcome == ("succeeded", None, 0)
    assert second is not None
    assert "adopted a session" in second.log
    stored = report.text.splitlines()
    lost, doubled = len(set(written) - set(stored)), len(stored) - len(set(stored))
    numbers = [int(line.rpartition(" ")[2]) for line in stored]
    reordered = sum(one > two for one, two in pairwise(numbers))
    print(f"{lines} lines over {breaks} resets and an adoption: {lost=} {doubled=} {reordered=}")
    assert (lost, doubled, reordered) == (0, 0, 0)
    assert stored == written
