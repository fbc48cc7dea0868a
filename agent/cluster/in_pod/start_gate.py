"""Hold the commands back until the services of the action are ready. Part of container `helper`, and an errand.

The helper dials the ports of the services itself, so that the agent needs no request. What only the agent can know, it
sends through the FIFO `gate`: that the health commands have succeeded (`release`), or that the workspace has its tree
and its inputs (`tree`). `main` is the errand that sends a word. `packaging` sends this source to the pod (Python
3.9, standard library).

The gate of an order has the keys `ports` (pairs of a service's number, from 1, and a port), `names` (of the services),
`seconds` (until all ports must accept), and `release` and `tree` (booleans).
"""

from __future__ import annotations

import contextlib
import os

from agent.cluster.in_pod.workspace import send_word, wait_for_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from agent.cluster.in_pod.order import Order

GATE = "gate"  # name of the FIFO in the log's folder
NOT_READY = 76  # exit code of container `helper` if a port did not accept in time
# Seconds between two dials: a share of the time since the start, within these bounds.
SHORTEST_PAUSE, LONGEST_PAUSE, PAUSE_SHARE = 0.05, 1.0, 0.02
DIAL_SECONDS = 0.2  # a dial on the loopback device takes longer only if the queue of the service is full


class StartGate:
    """What the commands of one pod still wait for. The `LogKeeper` owns it. Times are monotonic seconds."""

    def __init__(self, order: Order, log_folder: str, now: float) -> None:
        gate = order["gate"]
        self.nonce: str = order["nonce"]
        self.names: list[str] = gate["names"]
        self.seconds: float = gate["seconds"]
        self.ports: list[tuple[int, int]] = [(number, port) for number, port in gate["ports"]]
        self.words = {word for word in (b"release", b"tree") if gate[word.decode()]}
        self.began = self.next_dial = now
        self.waiting_since: float | None = None  # when container `action` had started
        path = log_folder + "/" + GATE
        os.mkfifo(path, 0o600)
        self.fifo = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    @property
    def is_open(self) -> bool:
        """Return whether the commands may start."""
        return not self.ports and not self.words

    def read_words(self) -> None:
        """Take the words that errands have sent."""
        with contextlib.suppress(BlockingIOError):
            self.words -= set(os.read(self.fifo, 4096).split())

    def dial(self, now: float) -> list[bytes]:
        """Dial the ports that have not accepted yet, if that is due. Return a marker for each service that is ready."""
        if not self.ports or now < self.next_dial:
            return []
        pause = (now - self.began) * PAUSE_SHARE
        self.next_dial = now + min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        before = {number for number, _ in self.ports}
        self.ports = [each for each in self.ports if not accepts(each[1])]
        ready = sorted(before - {number for number, _ in self.ports})
        return [b"\x1esealci:%s:r:%d\n" % (self.nonce.encode(), number) for number in ready]

    def overdue(self, now: float, *, present: bool) -> str:
        """Return which port did not accept in time, "" if none. PRESENT: container `action` has started."""
        if not present or not self.ports:
            return ""
        if self.waiting_since is None:
            self.waiting_since = now
        if now - self.waiting_since < self.seconds:
            return ""
        texts = [f"service {self.names[number - 1]} did not accept on port {port}" for number, port in self.ports]
        return f"{', '.join(texts)} within {self.seconds:g} s"


def accepts(port: int) -> bool:
    """Return whether a program accepts connections on PORT of 127.0.0.1."""
    import socket  # costs some milliseconds, and most actions have no services

    try:
        socket.create_connection(("127.0.0.1", port), DIAL_SECONDS).close()
    except OSError:
        return False
    return True


def main(arguments: list[str]) -> None:
    """Run with the arguments FIFO WORD: send a word to the gate."""
    fifo, word = arguments
    wait_for_path(fifo)
    send_word(fifo, word)
