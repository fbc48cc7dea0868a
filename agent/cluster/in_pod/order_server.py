"""Wait for the order of a warm pod. Part of the program of container `helper`.

A warm pod starts without an order. The agent delivers the order later, by the errand `deliver_order`, which connects to
a socket of this module. The delivery has two phases. The helper stores the order and answers `stored`. Then the agent
sends `go`, and the helper starts the commands. The helper alone decides whether the commands begin, so all agents get
the same answer. An agent that adopts the pod sends `seal`: from then on the commands cannot begin any more.

Messages are JSON lines. To the helper: `{"order": BYTES}`, followed by the JSON of the order; `{"go": NONCE}`;
`{"seal": true}`. From the helper: `{"stored": true}`, `{"begun": BOOLEAN}`, `{"refused": TEXT}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time

from agent.cluster.in_pod.order import BEGUN, SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.cluster.in_pod.log_keeper import LogKeeper
    from agent.cluster.in_pod.order import Order

MAX_LINE, MAX_ORDER = 1024, 4 * 1024 * 1024  # largest number of bytes of a message and of an order
MAX_PEERS = 8  # largest number of errands that are connected at the same time
POLL_SECONDS = 0.5  # seconds between two checks for TERM while an order waits for `go`


class Peer:
    """One connected errand. The `OrderServer` owns it."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.buffer = bytearray()
        self.order_bytes = 0  # size of the order that this errand announced, 0 before

    def send(self, message: dict[str, object]) -> None:
        # The errand may have ended.
        with contextlib.suppress(OSError):
            self.link.send(json.dumps(message).encode() + b"\n")


class OrderServer:
    """Takes the order of one warm pod. It lives until the commands begin, or as long as container `helper`.

    `accept` checks and stores an order. It returns why the order is refused, "" if it is stored. `begin` starts the
    commands.
    """

    def __init__(
        self,
        keeper: LogKeeper,
        folder: str,
        accept: Callable[[Order], str],
        begin: Callable[[Order], None],
    ) -> None:
        self.keeper = keeper
        self.folder = folder
        self.accept = accept
        self.begin = begin
        self.order: Order = {}
        self.deliverer: Peer | None = None  # the errand whose order is stored
        self.used = False  # an order was delivered, or the pod was sealed; no other order is taken
        self.begun = False
        self.peers: dict[int, Peer] = {}
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(folder + "/" + SOCKET)
        self.listener.listen(MAX_PEERS)
        self.poll = select.poll()
        self.poll.register(self.listener, select.POLLIN)

    def run(self, seconds: float) -> bool:
        """Serve until the commands begin. Return False if no order came in SECONDS, or if the pod is to end."""
        end = time.monotonic() + seconds
        while not self.begun:
            left = POLL_SECONDS if self.used else end - time.monotonic()
            if self.keeper.leaving or left <= 0:
                return False
            for fd, _ in self.poll.poll(int(left * 1000) + 1):
                if fd == self.listener.fileno():
                    self.connect()
                elif fd in self.peers:
                    self.read(self.peers[fd])
        for peer in list(self.peers.values()):
            self.close(peer)
        return True

    def connect(self) -> None:
        link, _ = self.listener.accept()
        if len(self.peers) >= MAX_PEERS:
            link.close()
            return
        link.settimeout(POLL_SECONDS)
        self.peers[link.fileno()] = Peer(link)
        self.poll.register(link, select.POLLIN)

    def close(self, peer: Peer) -> None:
        """Forget an errand. An order that did not get `go` from its errand is never started."""
        self.poll.unregister(peer.link)
        del self.peers[peer.link.fileno()]
        peer.link.close()
        if peer is self.deliverer:
            self.deliverer = None
            self.order = {}

    def refuse(self, peer: Peer, why: str) -> None:
        peer.send({"refused": why})
        self.close(peer)

    def read(self, peer: Peer) -> None:
        """Read from an errand, and obey its complete messages."""
        try:
            data = peer.link.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            self.close(peer)
            return
        peer.buffer += data
        while peer.link.fileno() in self.peers and not self.begun:
            if peer.order_bytes:
                if len(peer.buffer) < peer.order_bytes:
                    return
                text = bytes(peer.buffer[: peer.order_bytes])
                del peer.buffer[: peer.order_bytes]
                peer.order_bytes = 0
                self.store(peer, text)
                continue
            line, separator, rest = bytes(peer.buffer).partition(b"\n")
            if not separator:
                if len(line) > MAX_LINE:
                    self.refuse(peer, "a message is too long")
                return
            peer.buffer[:] = rest
            self.obey(peer, line)

    def obey(self, peer: Peer, line: bytes) -> None:
        try:
            message = json.loads(line)
            size = int(message.get("order", 0))
        except (ValueError, TypeError, AttributeError):
            self.refuse(peer, "a message is not as expected")
            return
        if size:
            if 0 < size <= MAX_ORDER:
                peer.order_bytes = size
            else:
                self.refuse(peer, "the order is too large")
        elif "seal" in message:
            self.seal(peer)
        elif peer is self.deliverer and message.get("go") == self.order["nonce"]:
            self.start(peer)
        else:
            self.refuse(peer, "there is no stored order with this nonce")

    def store(self, peer: Peer, text: bytes) -> None:
        """Store the order that an errand delivered. Only the first order is taken."""
        if self.used:
            self.refuse(peer, "another order was delivered, or the pod was sealed")
            return
        self.used = True
        try:
            order = json.loads(text)
            why = self.accept(order)
        except (ValueError, TypeError, KeyError, OSError) as error:
            why = "the order cannot be stored: " + repr(error)
        if why:
            self.refuse(peer, why)
            return
        self.order, self.deliverer = order, peer
        peer.send({"stored": True})

    def seal(self, peer: Peer) -> None:
        """Decide that the commands will not begin."""
        self.used = True
        if self.deliverer is not None:
            self.refuse(self.deliverer, "the pod was sealed by another agent")
        peer.send({"begun": False})

    def start(self, peer: Peer) -> None:
        """Start the commands. The file BEGUN answers the errands that come later."""
        with open(self.folder + "/" + BEGUN, "w"):
            pass
        self.listener.close()
        os.unlink(self.folder + "/" + SOCKET)
        self.begun = True
        self.begin(self.order)
        peer.send({"begun": True})
