"""A log of 100 MB on a real cluster, with a fault in its middle: the stored log has the SHA-256 of what was written.

All tests run on a node that rotates log files of 1 MiB.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.cluster.packaging import SNAPSHOT
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, DEBIAN, Lab, until
from tests.faults.cluster.proxied_agent import proxied_agent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.e2e.lab import Agent
    from tests.e2e.submission import Submission
    from tests.faults.proxy import Threaded

pytestmark = pytest.mark.alone
LINES, LINE = 1_150_000, 87  # number of lines, and bytes of each: 100 MB
PER_BLOCK = 1000
# Bytes per second. At this rate, a test has time to inject a fault in the middle of the log. The stdout of container
# `helper` is slower than this rate.
RATE = 8_000_000
# Bytes per second, and number of lines, of a slow log, which the agent reads from the stdout of container `helper`.
SLOW_RATE, SLOW_LINES = 100_000, 20_000
WRITER = """
import sys, time
count, rate = int(sys.argv[1]), int(sys.argv[2])
began, out = time.monotonic(), sys.stdout.buffer
for start in range(0, count, 1000):
    out.write(b"".join(b"%08d " % number + b"x" * 77 + b"\\n" for number in range(start, min(count, start + 1000))))
    if rate:
        out.flush()
        time.sleep(max(0, began + (start + 1000) * 87 / rate - time.monotonic()))
"""
QUICK = {"cluster": {"lease_duration": "4s", "lease_renew": "1s"}}


def writer(lines: int = LINES, rate: int = RATE, step: int = PER_BLOCK) -> str:
    """Return a command that writes `lines` numbered lines, `step` lines at once. A `rate` of 0 is no limit."""
    program = WRITER.replace("1000", str(step))
    return f"python3 -c {shlex.quote(program)} {lines} {rate}"


def digest_of(lines: int) -> str:
    """Return the SHA-256 of what `writer` writes."""
    digest = hashlib.sha256()
    for start in range(0, lines, PER_BLOCK):
        numbers = range(start, min(lines, start + PER_BLOCK))
        digest.update(b"".join(b"%08d " % number + b"x" * 77 + b"\n" for number in numbers))
    return digest.hexdigest()


class BrokenLab:
    """An agent that reaches the API server through a proxy, and the actions that it runs."""

    def __init__(self, lab: Lab, agent: Agent, proxy: Threaded) -> None:
        self.lab = lab
        self.agent = agent
        self.proxy = proxy


@pytest.fixture(scope="module", autouse=True)
def small_log_files() -> Iterator[None]:
    kube.provider("log-limit", "1Mi")
    try:
        yield
    finally:
        kube.provider("log-limit", "default")


@pytest.fixture(scope="module")
def broken_lab(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenLab]:
    with proxied_agent(namespace, tmp_path_factory.mktemp("exact"), logs={"probe_after": "3s"}) as made:
        yield BrokenLab(*made)


def start(lab: Lab, *commands: str, **keys: Any) -> Submission:
    action = {"image": DEBIAN, "commands": list(commands), "artifacts": "none", "timeout": "170s", **keys}
    return lab.start({"writer": action})


def until_stored(submission: Submission, size: int) -> None:
    """Wait until the scheduler has stored `size` bytes of the log."""
    report = submission.reports["writer"]
    submission.until_running("writer")
    log = report.folder / "writer.log"
    until(lambda: log.stat().st_size >= size, f"{size} bytes were not stored", 120)


def check_exact(submission: Submission, lines: int = LINES) -> None:
    """Wait for the end of the action and compare the stored log with what was written."""
    report = submission.wait()["writer"]
    assert report.outcome == ("succeeded", None, 0), report.finished
    assert len(report.log) == lines * LINE
    assert hashlib.sha256(report.log).hexdigest() == digest_of(lines)


def kill_helper(uid: str) -> None:
    """Kill PID 1 of container `helper` of a pod. The node runs on this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group, argv = (folder / "cgroup").read_text(), (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if (uid in group or uid.replace("-", "_") in group) and SNAPSHOT.encode() in argv:
            found.append(int(folder.name))
    (process,) = found
    os.kill(process, signal.SIGKILL)


@pytest.mark.timeout(180)
def test_a_burst_is_exact(broken_lab: BrokenLab) -> None:
    check_exact(start(broken_lab.lab, writer(rate=0)))


@pytest.mark.timeout(180)
def test_a_log_is_exact_over_a_killed_agent(own_lab: Lab) -> None:
    first = own_lab.agent(**QUICK)
    submission = start(own_lab, writer())
    until_stored(submission, LINES * LINE // 3)
    second = own_lab.agent(**QUICK)
    first.kill()
    check_exact(submission)
    assert "adopted a session" in second.log


def restart_api_server() -> None:
    kube.provider("restart", "apiserver")


def restart_kubelet() -> None:
    kube.provider("restart", "kubelet")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", [restart_api_server, restart_kubelet])
def test_a_log_is_exact_over_a_restart(broken_lab: BrokenLab, fault: Callable[[], None]) -> None:
    submission = start(broken_lab.lab, writer())
    until_stored(submission, LINES * LINE // 3)
    try:
        fault()
    finally:
        if fault is restart_api_server:
            kube.settle()
    check_exact(submission)


@pytest.mark.timeout(240)
def test_a_log_is_exact_if_every_connection_breaks_after_two_seconds(broken_lab: BrokenLab) -> None:
    submission = start(broken_lab.lab, writer())
    over = threading.Event()

    def cut() -> None:
        while not over.wait(2):
            broken_lab.proxy.fault("reset")

    cutter = threading.Thread(target=cut, name="cutter")
    cutter.start()
    try:
        check_exact(submission)
    finally:
        over.set()
        cutter.join()


@pytest.mark.timeout(180)
def test_a_slow_log_is_exact_over_rotations_and_broken_connections(broken_lab: BrokenLab) -> None:
    """The agent reads a slow log from the helper's stdout. It reads missing bytes from the helper's log file."""
    submission = start(broken_lab.lab, writer(SLOW_LINES, SLOW_RATE, 5))
    for turn, fault in enumerate(("reset", "fin", "stall", "reset"), 1):
        until_stored(submission, turn * SLOW_LINES * LINE // 5)
        broken_lab.proxy.fault(fault)
    kube.provider("restart", "kubelet")
    check_exact(submission, SLOW_LINES)


@pytest.mark.timeout(180)
def test_several_writers_on_one_pipe_lose_no_line(broken_lab: BrokenLab) -> None:
    one = "i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo {name} $i; done"
    names = "abcd"
    command = " & ".join(f"sh -c {shlex.quote(one.format(name=name))}" for name in names) + " & wait"
    report = broken_lab.lab.one(BUSYBOX, command, artifacts="none")
    assert report.outcome == ("succeeded", None, 0), report
    for name in names:
        mine = [line for line in report.text.splitlines() if line.startswith(name)]
        assert mine == [f"{name} {number}" for number in range(1, 2001)]
    assert report.text.count("\n") == 2000 * len(names)


@pytest.mark.timeout(180)
def test_a_log_over_its_limit_is_cut_with_the_exact_count(own_lab: Lab) -> None:
    own_lab.agent(logs={"max_total": "10Mi"})
    report = start(own_lab, "echo first", writer(200_000)).wait()["writer"]
    assert report.outcome == ("succeeded", None, 0), report.finished
    text, _, notice = report.log.rpartition(b"\n[")
    found = re.fullmatch(rb"log cut at (\d+) bytes: (\d+) bytes are left out\]\n", notice)
    assert found
    assert int(found[1]) == 10 << 20
    # The two numbers in the notice also count the bytes of the markers, which the agent removes from the log.
    assert int(found[1]) + int(found[2]) >= len(b"first\n") + 200_000 * LINE
    assert int(found[1]) + int(found[2]) < len(b"first\n") + 200_000 * LINE + 1000
    assert text.startswith(b"first\n00000000 x")


# Makes PID 1 the first victim of the kernel, then fills the memory by small processes.
EXHAUST = """
import os, time
open("/proc/1/oom_score_adj", "w").write("1000")
while os.fork():
    time.sleep(0.001)
held = b"x" * (1 << 20)
time.sleep(60)
"""


def exhaust_memory(lab: Lab, name: str) -> None:
    """Fill the memory of container `helper` until the kernel kills PID 1 of the container."""
    kube.kubectl("exec", name, "-n", lab.namespace, "-c", "helper", "--", "python3", "-c", EXHAUST, check=False)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("rate", "out_of_memory"), [(50_000, True), (RATE, False)])
def test_a_killed_helper_ends_the_action_and_every_missing_byte_is_counted(
    broken_lab: BrokenLab, rate: int, out_of_memory: bool
) -> None:
    """Without the helper the commands would hang, because no process reads their output."""
    submission = start(broken_lab.lab, writer(rate=rate, step=50))
    until_stored(submission, 2 * rate)
    (action_id,) = broken_lab.lab.action_ids(submission.reports["writer"])
    metadata = broken_lab.lab.observer.pods(action_id)[-1]["metadata"]
    if out_of_memory:
        exhaust_memory(broken_lab.lab, metadata["name"])
    else:
        kill_helper(metadata["uid"])
    report = submission.wait()["writer"]
    outcome, reason, _ = report.outcome
    assert (outcome, reason) == ("failed", "INTERNAL"), report.finished
    how = "was killed for memory" if out_of_memory else "ended with exit code 137"
    assert f"container helper {how} while the commands ran" in report.finished["message"]
    assert b"[the log ends here: container helper ended before the commands did" in report.log
    check_counted(report.log)


def check_counted(log: bytes) -> None:
    """Check that the log has all numbered lines, except for gaps whose notices state how many bytes are missing."""
    position, expected = 0, b"".join(b"%08d " % number + b"x" * 77 + b"\n" for number in range(LINES // 2))
    gap = re.compile(rb"\n?\[gap in the log: (\d+) bytes are missing: [^]]*\]\n")
    text = log.partition(b"[the log ends here")[0]
    while found := gap.search(text):
        part = text[: found.start()]
        # The notice about a gap begins with an additional newline if the gap begins in the middle of a line.
        assert expected.startswith(part, position)
        position += len(part)
        position += int(found[1]) + (expected[position : position + 1] == b"\n" and found[0].startswith(b"\n"))
        text = text[found.end() :]
    assert expected.startswith(text.rstrip(b"\n"), position)
