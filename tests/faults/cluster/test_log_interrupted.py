"""A log on a real cluster over rotations, broken connections and a restarted kubelet.

The stored log is complete, or a gap marker stands at each gap.
"""

from __future__ import annotations

import re
import shlex
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from tests.e2e import kube
from tests.e2e.lab import DEBIAN, until
from tests.faults.cluster.numbered_log import SIZE, Account, program
from tests.faults.cluster.proxied_agent import proxied_agent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.lab import Agent, Lab
    from tests.e2e.submission import Submission
    from tests.faults.proxy import Threaded

pytestmark = pytest.mark.alone
LIMIT = 1 << 20
FULL = LIMIT // 140 + 1000  # Number of lines that fill a log file of the node, with the prefixes that the node adds.
RATE = 500_000
SETTINGS = {"logs": {"probe_after": "3s"}, "scheduler": {"window": "128Ki", "keepalive": "30s"}}


class Hard:
    """An agent that reaches the API server through a proxy, on a node that rotates log files of 1 MiB."""

    def __init__(self, lab: Lab, agent: Agent, proxy: Threaded) -> None:
        self.lab = lab
        self.agent = agent
        self.proxy = proxy

    def start(self, *steps: str) -> Writing:
        """Start an action that writes numbered lines as `steps` describe, and wait until its pod runs."""
        commands = ["echo begun", program(*steps)]
        action = {"image": DEBIAN, "commands": commands, "artifacts": "none", "timeout": "150s"}
        submission = self.lab.start({"writer": action})
        submission.until_running("writer", "begun")
        return Writing(self, submission)

    def gaps(self, kind: str) -> int:
        """Return the number of gaps of a kind in the metrics. The agent counts a gap at the end of its session."""
        until(lambda: "sealci_agent_slots_used 0.0" in self.agent.get("/metrics")[1], "a session did not end", 60)
        found = re.search(rf'log_gaps_total{{kind="{kind}"}} (\d+)', self.agent.get("/metrics")[1])
        assert found
        return int(found[1])


class Writing:
    """A running action that writes numbered lines."""

    def __init__(self, hard: Hard, submission: Submission) -> None:
        self.hard = hard
        self.submission = submission
        (action_id,) = hard.lab.action_ids(submission.reports["writer"])
        self.pod = hard.lab.observer.pods(action_id)[-1]["metadata"]["name"]
        self.where = ("-n", hard.lab.namespace, self.pod, "-c", "action")

    def go(self, name: str) -> None:
        """Create the file for which the writer in the pod waits, with kubectl, which does not use the proxy."""
        kube.kubectl("exec", *self.where, "--", "touch", name)

    def head(self) -> str:
        """Return the first timestamp of the node's current log file, "" while the file is empty."""
        return kube.kubectl("logs", *self.where, "--timestamps", "--limit-bytes=30")

    def until_rotated(self, head: str) -> str:
        """Wait until the node's log file no longer begins with the timestamp `head`. Return the new first timestamp."""
        (now,) = until(lambda: [now] if (now := self.head()) != head else [], "the node did not rotate the log", 30)
        return str(now)

    def until_stored(self, number: int) -> None:
        """Wait until the scheduler has stored line number `number`."""
        log = self.submission.reports["writer"].folder / "writer.log"
        until(lambda: b"\n%08d " % number in log.read_bytes(), f"line {number} was not stored", 60)

    def account(self, total: int) -> Account:
        """Wait for the end of the action and return the account of its log. The action writes `total` lines."""
        report = self.submission.wait()["writer"]
        assert report.outcome == ("succeeded", None, 0), report
        first, _, rest = report.log.partition(b"\n")
        assert first == b"begun"
        account = Account.of(rest, total)
        print(account)
        account.check()
        return account


@pytest.fixture(scope="module")
def hard(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hard]:
    kube.provider("log-limit", "1Mi")
    try:
        with proxied_agent(namespace, tmp_path_factory.mktemp("hard"), **SETTINGS) as made:
            yield Hard(*made)
    finally:
        kube.provider("log-limit", "default")


@pytest.mark.timeout(180)
def test_a_paced_log_is_complete_over_rotations_and_broken_connections(hard: Hard) -> None:
    """Each connection breaks while less than one log file is unread, so that no rotation can lose a line."""
    steps, lines = [], 0
    for turn in range(4):
        steps += [f"write:4000:{RATE // 2}", f"wait:full{turn}", f"write:{FULL - 3000}:{RATE}", f"wait:next{turn}"]
    lines = 4 * (FULL + 1000)
    writing = hard.start(*steps, "print:half a line", "wait:mend", "print:\n", "write:10:1000")
    for turn, fault in enumerate(("reset", "fin", "stall", "reset")):
        writing.until_stored(turn * (FULL + 1000) + 1000)
        hard.proxy.fault(fault)
        writing.until_stored(turn * (FULL + 1000) + 4000)
        head = writing.head()
        writing.go(f"full{turn}")
        writing.until_rotated(head)
        writing.until_stored((turn + 1) * (FULL + 1000))
        writing.go(f"next{turn}")
    kube.provider("restart", "kubelet")
    writing.go("mend")
    report = writing.submission.wait()["writer"]
    assert report.outcome == ("succeeded", None, 0), report
    begun, *rest = report.log.splitlines(keepends=True)
    assert begun == b"begun\n"
    whole = [line for line in rest if line != b"half a line\n"]
    assert len(rest) - len(whole) == 1
    account = Account.of(b"".join(whole), lines + 10)
    print(account)
    account.check()
    assert account.lost == 0


@pytest.mark.timeout(180)
def test_every_gap_of_a_fast_log_is_marked_when_connections_break_often(hard: Hard) -> None:
    """If a connection breaks during a rotation, the gap marker spans exactly the lost lines."""
    lines = 60_000
    writing = hard.start(f"write:{lines}:{RATE}")
    over = threading.Event()

    def cut() -> None:
        while not over.wait(2):
            hard.proxy.fault("reset")

    cutter = threading.Thread(target=cut, name="cutter")
    cutter.start()
    try:
        writing.account(lines)
    finally:
        over.set()
        cutter.join()


@pytest.mark.timeout(180)
def test_several_writers_on_one_pipe_lose_no_line(hard: Hard) -> None:
    one = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo {name} $i; done"
    names = "abcd"
    command = " & ".join(f"sh -c {shlex.quote(one.format(name=name))}" for name in names) + " & wait"
    report = hard.lab.one(DEBIAN, command, artifacts="none")
    assert report.outcome == ("succeeded", None, 0), report
    for name in names:
        mine = [line for line in report.text.splitlines() if line.startswith(name)]
        assert mine == [f"{name} {number}" for number in range(1, 2001)]
    assert report.text.count("\n") == 2000 * len(names)


@pytest.mark.timeout(180)
def test_a_gap_while_the_agent_cannot_reach_the_api_is_marked_and_counted(hard: Hard) -> None:
    before, lost, after = 3000, 60_000, 1000
    counted = hard.gaps("certain")
    writing = hard.start(
        f"write:{before}:{RATE}", "wait:away", f"write:{lost}:1000000", "wait:back", f"write:{after}:{RATE}"
    )
    writing.until_stored(before)
    head = writing.head()
    hard.proxy.fault("swallow")
    writing.go("away")
    writing.until_rotated(writing.until_rotated(head))
    hard.proxy.fault("heal")
    writing.go("back")
    account = writing.account(before + lost + after)
    # The agent had read less than one file, so it knows for certain that lines are missing.
    assert account.marks[0].after == before
    assert account.marks[0].certain
    assert account.lost >= FULL
    assert hard.gaps("certain") == counted + sum(mark.certain for mark in account.marks)


@pytest.mark.timeout(180)
def test_a_gap_while_the_scheduler_reads_nothing_is_marked(hard: Hard) -> None:
    """The scheduler is frozen, so the agent stops reading when its windows are full, while the node rotates file after
    file.
    """
    lines, more = 700_000, 1000
    counted = hard.gaps("possible") + hard.gaps("certain")
    writing = hard.start(f"write:{lines}:3000000", "wait:end", f"write:{more}:{RATE}")
    head = writing.head()
    hard.lab.scheduler.send_signal(signal.SIGSTOP)
    try:
        for _ in range(5):
            head = writing.until_rotated(head)
    finally:
        hard.lab.scheduler.send_signal(signal.SIGCONT)
    writing.go("end")
    account = writing.account(lines + more)
    assert account.lost > 0
    assert hard.gaps("possible") + hard.gaps("certain") == counted + len(account.marks)


def test_a_numbered_line_has_the_expected_size() -> None:
    assert len(b"00000001 1795000000000000000 " + b"x" * 70 + b"\n") == SIZE
