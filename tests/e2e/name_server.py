"""A DNS server that resolves one name, on an address that pods reach. It runs during a `with` block."""

from __future__ import annotations

import contextlib
import ipaddress
import socketserver
import struct
import threading
from typing import TYPE_CHECKING

from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import Iterator

# Number of bytes of a DNS header, and thus the offset at which the question begins.
HEADER = 12
NO_SUCH_NAME = 3
TYPE_A = 1


def answer(query: bytes, name: str, address: str) -> bytes:
    """Return the DNS response to a query with one question.

    If the question is for `name`, the response has `address` for the type A, and no record for another type. For any
    other name the response has the error NXDOMAIN.
    """
    end = query.index(b"\0", HEADER) + 1
    question = query[HEADER : end + 4]
    wanted = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    known = query[HEADER:end].lower() == wanted
    is_a = known and struct.unpack(">H", query[end : end + 2])[0] == TYPE_A
    # The flags mean: a response, recursion was desired, recursion is available.
    flags = 0x8180 | (0 if known else NO_SUCH_NAME)
    header = query[:2] + struct.pack(">5H", flags, 1, int(is_a), 0, 0)
    record = b"\xc0\x0c" + struct.pack(">2HIH", TYPE_A, 1, 60, 4) + ipaddress.ip_address(address).packed
    return header + question + (record if is_a else b"")


@contextlib.contextmanager
def knowing(name: str, address: str) -> Iterator[str]:
    """Run a DNS server that resolves only `name`, to `address`, until the block ends. Yield the server's HOST:PORT."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, socket = self.request
            socket.sendto(answer(query, name, address), self.client_address)

    host = kube.provider("address").splitlines()[-1]
    with socketserver.ThreadingUDPServer((host, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="name server", daemon=True)
        thread.start()
        try:
            yield f"{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join(5)
