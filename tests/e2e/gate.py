"""A door that pods wait at: it takes connections on the address that nodes reach, and answers when the test says so.

A gate that is never opened is a peer that hangs: a registry that is slow, a git server behind a black hole. It lives as
long as its block; whoever still waits then is let go.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import Iterator


class Gate:
    """One port; `address` is HOST:PORT as pods and nodes reach it."""

    def __init__(self) -> None:
        self.server = socket.create_server((kube.provider("address").splitlines()[-1], 0))
        host, port = self.server.getsockname()
        self.address = f"{host}:{port}"
        self.waiting: list[socket.socket] = []
        self.arrived = threading.Semaphore(0)
        self.thread = threading.Thread(target=self.accept, name=f"gate {self.address}", daemon=True)
        self.thread.start()

    @property
    def knock(self) -> str:
        """The command that waits at this gate."""
        return f"nc {self.address.replace(':', ' ')} </dev/null"

    def accept(self) -> None:
        """Take everybody."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.waiting.append(connection)
                self.arrived.release()

    def until_somebody_waits(self, timeout: float = 60) -> None:
        """Wait for the next one to come."""
        assert self.arrived.acquire(timeout=timeout), f"nobody comes to {self.address}"

    def until_left(self, timeout: float = 60) -> None:
        """Wait until the last one that came has gone by itself; it came with nothing to say."""
        self.waiting[-1].settimeout(timeout)
        with contextlib.suppress(ConnectionError):
            assert self.waiting[-1].recv(1) == b""

    def open(self) -> None:
        """Let everybody go."""
        for connection in self.waiting:
            connection.close()

    def close(self) -> None:
        """Take nobody any more."""
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join(5)
        self.open()


@contextlib.contextmanager
def gate() -> Iterator[Gate]:
    """Hold a gate while the block runs."""
    made = Gate()
    try:
        yield made
    finally:
        made.close()
