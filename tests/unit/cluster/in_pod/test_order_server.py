"""A warm pod: the helper waits for an order, and an errand delivers it in two phases.

Helper, supervisor and errands run as real processes, under each shell that images use as /bin/sh.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.cluster import packaging
from agent.cluster.in_pod.order import BEGUN, SOCKET
from agent.cluster.supervisor.termination import judge
from agent.domain.json import Object
from tests.unit.cluster.supervisor.shells import DEADLINE, NONCE, SHELLS, Container, Options, container

WARM = Options(idle_seconds=DEADLINE)


class Errand:
    """The errand that carries messages to the helper, as a process. Lives for one test."""

    def __init__(self, folder: Path) -> None:
        program = packaging.deliver_order_command()
        self.process = subprocess.Popen(
            [sys.executable, *program[1:-1], str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def send(self, message: Object, rest: bytes = b"") -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n" + rest)
        self.process.stdin.flush()

    def answer(self) -> Object:
        assert self.process.stdout
        found: Object = json.loads(self.process.stdout.readline() or "{}")
        return found

    def deliver(self, order: Object) -> Object:
        data = json.dumps(order).encode()
        self.send({"order": len(data)}, data)
        return self.answer()

    def go(self, nonce: str = NONCE) -> Object:
        self.send({"go": nonce})
        return self.answer()

    def seal(self) -> Object:
        self.send({"seal": True})
        return self.answer()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)


class Warm:
    """A warm pod that waits for its order, and its errands. Lives for one test."""

    def __init__(self, pod: Container) -> None:
        self.pod = pod
        self.folder = pod.log.parent
        self.errands: list[Errand] = []
        wait_until((self.folder / SOCKET).exists)
        pod.wait_for_pid_1()

    def errand(self) -> Errand:
        self.errands.append(Errand(self.folder))
        return self.errands[-1]

    @property
    def has_begun(self) -> bool:
        return (self.folder / BEGUN).exists()


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def warm_pod(shell: str, *commands: str, options: Options = WARM) -> Iterator[Warm]:
    with container(shell, *commands, options=options) as pod:
        warm = Warm(pod)
        try:
            yield warm
        finally:
            for errand in warm.errands:
                errand.end()


@pytest.mark.parametrize("shell", SHELLS)
def test_an_order_begins_after_both_phases_and_only_once(shell: str) -> None:
    with warm_pod(
        shell, "echo a", 'echo "$TOKEN"', options=Options(idle_seconds=DEADLINE, env={"TOKEN": "it's"})
    ) as warm:
        first = warm.errand()
        assert first.deliver(warm.pod.whole_order()) == {"stored": True}
        assert not warm.has_begun
        assert warm.pod.raw == b""
        # The order is in the volume in memory alone.
        assert [
            path.name for path in warm.folder.iterdir() if b"it's" in (path.read_bytes() if path.is_file() else b"")
        ] == []
        assert first.go() == {"begun": True}
        # Every later errand learns that the commands have begun, and no order is taken.
        assert warm.errand().seal() == {"begun": True}
        result = warm.pod.wait()
        assert (result.code, result.text, result.markers) == (0, "a\nit's\n", "s1 f1:0 s2 f2:0 l:0")
        assert result.verdict.succeeded
        assert warm.errand().deliver(warm.pod.whole_order()) == {"begun": True}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_sealed_pod_starts_nothing_and_ends_at_once_on_term(shell: str) -> None:
    with warm_pod(shell, "echo never") as warm:
        first, second = warm.errand(), warm.errand()
        assert first.deliver(warm.pod.whole_order()) == {"stored": True}
        assert second.seal() == {"begun": False}
        assert "sealed" in first.answer()["refused"]
        assert "refused" in warm.errand().deliver(warm.pod.whole_order())
        warm.pod.pre_stop()
        assert warm.pod.process.wait(DEADLINE) == 143
        assert warm.pod.helper
        warm.pod.helper.send_signal(signal.SIGTERM)
        assert warm.pod.helper.wait(DEADLINE) == 0
        assert (warm.has_begun, warm.pod.raw.count(b"never")) == (False, 0)


def test_an_order_without_go_is_never_started() -> None:
    with warm_pod("dash", "echo never") as warm:
        first = warm.errand()
        assert first.deliver(warm.pod.whole_order()) == {"stored": True}
        first.end()
        # A second agent gets the same answer, however often it asks.
        assert warm.errand().seal() == {"begun": False}
        assert warm.errand().seal() == {"begun": False}
        late = warm.errand()
        late.send({"go": NONCE})
        assert "refused" in late.answer()
        assert not warm.has_begun


@pytest.mark.parametrize(
    "message",
    [b"\n", b"[]\n", b'{"order": -1}\n', b'{"order": 99999999}\n', b'{"order": "x"}\n', b'{"go": "x"}\n', b"x" * 5000],
)
def test_a_message_that_is_not_as_expected_is_refused_and_the_pod_still_waits(message: bytes) -> None:
    with warm_pod("dash", "echo a") as warm:
        bad, good = warm.errand(), warm.errand()
        assert bad.process.stdin
        bad.process.stdin.write(message)
        bad.process.stdin.flush()
        assert "refused" in bad.answer()
        assert good.deliver(warm.pod.whole_order()) == {"stored": True}
        assert "refused" in good.go("another-nonce")
        assert warm.errand().seal() == {"begun": False}


def test_an_unusable_order_is_refused_and_uses_the_pod_up() -> None:
    with warm_pod("dash", "echo a") as warm:
        assert "refused" in warm.errand().deliver({"nonce": NONCE})
        assert "refused" in warm.errand().deliver(warm.pod.whole_order())


def test_an_order_is_refused_if_container_action_has_ended() -> None:
    with warm_pod("dash", "echo a") as warm:
        warm.pod.process.kill()
        warm.pod.process.wait(DEADLINE)
        answer = warm.errand().deliver(warm.pod.whole_order())
        assert answer == {"refused": "container action does not run"}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_pod_without_an_order_ends_by_itself(shell: str) -> None:
    with container(shell, "echo never", options=Options(idle_seconds=0.3)) as pod:
        assert pod.helper
        assert pod.helper.wait(DEADLINE) == 0
        assert pod.process.wait(DEADLINE) == 0
        # Such an end is no success, even if an agent had claimed the pod.
        assert not judge(0, None, 1).succeeded


@pytest.mark.parametrize("shell", SHELLS)
def test_a_waiting_pod_needs_no_processor(shell: str) -> None:
    with warm_pod(shell, "true") as warm:
        assert warm.pod.helper
        children = Path(f"/proc/{warm.pod.process.pid}/task/{warm.pod.process.pid}/children").read_text().split()
        pids = [warm.pod.helper.pid, int(children[0])]

        def switches() -> list[int]:
            status = [Path(f"/proc/{pid}/status").read_text() for pid in pids]
            return [int(text.partition("voluntary_ctxt_switches:")[2].split()[0]) for text in status]

        def is_asleep() -> bool:
            before = switches()
            time.sleep(0.3)
            return switches() == before

        wait_until(is_asleep)
