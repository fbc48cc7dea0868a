"""A TCP port at which pods wait. A Gate accepts connections on an address that nodes reach, and never answers.

The test closes the connections to let the pods continue. A Gate that no test opens simulates a server that hangs, such
as a slow registry or an unreachable git server. A Gate lives as long as its `with` block and closes all connections at
the end.
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
    """One TCP port at which clients wait until the test opens the gate. `address` is HOST:PORT for pods and nodes."""

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
        """Return a shell command that connects to this port and waits until the test opens the gate."""
        return f"nc {self.address.replace(':', ' ')} </dev/null"

    def accept(self) -> None:
        """Accept every connection at the port and keep it open, until `close` is called."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.waiting.append(connection)
                self.arrived.release()

    def until_connected(self, timeout: float = 60) -> None:
        """Wait until one more client has connected. Each call waits for another client."""
        assert self.arrived.acquire(timeout=timeout), f"no connection to {self.address}"

    def until_left(self, timeout: float = 60) -> None:
        """Wait until the newest client has closed its connection."""
        self.waiting[-1].settimeout(timeout)
        with contextlib.suppress(ConnectionError):
            assert self.waiting[-1].recv(1) == b""

    def open(self) -> None:
        """Close all connections, so that the commands that wait for this gate continue."""
        for connection in self.waiting:
            connection.close()

    def close(self) -> None:
        """Stop listening and close all connections."""
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join(5)
        self.open()


@contextlib.contextmanager
def gate() -> Iterator[Gate]:
    made = Gate()
    try:
        yield made
    finally:
        made.close()
