"""Carry messages between the agent and the helper of a warm pod: one exec in container `helper`.

Standard input goes to the socket of `order_server`, and its answers go to standard output. If the commands have begun
already, the socket is gone, and this program answers `{"begun": true}` itself. `packaging` sends this source with the
exec (Python 3.9, standard library).
"""

from __future__ import annotations

import os
import select

# The module `socket` takes 10 ms to import, a third of this program's time. Everything that it needs is in `_socket`.
from _socket import AF_UNIX, SOCK_STREAM, socket

from agent.cluster.in_pod.order import BEGUN, SOCKET


def relay(link: socket) -> bytes:
    """Carry bytes both ways until the helper ends the connection. Return all bytes that the helper sent."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(link, select.POLLIN)
    seen = b""
    while True:
        for fd, _ in poll.poll():
            if fd == 0:
                data = os.read(0, 1 << 16)
                if not data:
                    # The agent has gone. The helper sees the end of the connection and takes no `go` any more.
                    return seen
                link.sendall(data)
            else:
                data = link.recv(1 << 16)
                if not data:
                    return seen
                os.write(1, data)
                seen = (seen + data)[-1024:]


def main(arguments: list[str]) -> None:
    """Run with the argument LOG_FOLDER, the folder with the socket of the helper."""
    (folder,) = arguments
    link, seen, why = socket(AF_UNIX, SOCK_STREAM), b"", "it does not answer"
    try:
        link.connect(folder + "/" + SOCKET)
        seen = relay(link)
    except OSError as error:
        why = error.strerror or repr(error)
    if b'"begun"' in seen or b'"refused"' in seen:
        return
    if os.path.exists(folder + "/" + BEGUN):
        os.write(1, b'{"begun": true}\n')
    else:
        os.write(1, b'{"refused": "container helper takes no order: %s"}\n' % why.encode().replace(b'"', b"'"))
