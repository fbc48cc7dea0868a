"""Accept the connections of the HTTP port. Limit their number and the time that a connection has no request.

Any pod of the cluster can open connections, even a pod that runs an action. Very many connections must neither use up
the file descriptors of the agent nor block the probes of the kubelet.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

log = structlog.get_logger(__name__)

# Maximum number of open connections. For each further connection, the agent closes an older one.
MAX_CONNECTIONS = 64
# Maximum number of connections that the kernel keeps until the agent accepts them.
BACKLOG = 128
# Maximum number of seconds from the accept of a connection until the head of its first HTTP request is complete.
HEAD_SECONDS = 10.0
# Maximum number of seconds from one request of a connection to the next request. Longer than the usual interval at
# which Prometheus scrapes.
IDLE_SECONDS = 75.0
# Seconds until the next accept after an accept failed, for example because no file descriptor is free.
ACCEPT_PAUSE = 1.0


class Connections:
    """The open connections of the HTTP port. One object lives as long as the port is open.

    `protocol` creates the asyncio protocol of each connection.
    """

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self.protocol = protocol
        # Times by the clock `time.monotonic`: `accepted` holds when each connection was accepted, and `requested` when
        # the last request of each connection came. A connection that has sent no request is only in `accepted`.
        self.accepted: dict[asyncio.BaseTransport, float] = {}
        self.requested: dict[asyncio.BaseTransport, float] = {}

    def __len__(self) -> int:
        return len(self.accepted)

    async def accept(self, listener: socket.socket) -> None:
        """Accept connections one after another until cancelled."""
        loop = asyncio.get_running_loop()
        failing = False
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
                failing = False
            except OSError as error:
                # Log only the first of several failures in a row. Without a free file descriptor, every accept fails.
                if not failing:
                    log.warning("the HTTP port cannot accept connections", error=str(error))
                failing = True
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            self.make_room()
            try:
                # This call returns when the event loop watches the connection. If a request is already there, the loop
                # therefore reads it before the agent can close this connection to make room for later ones.
                transport, _ = await loop.connect_accepted_socket(self.protocol, accepted)
            except OSError:
                accepted.close()
                continue
            self.accepted[transport] = time.monotonic()

    def saw_request(self, transport: asyncio.BaseTransport | None) -> None:
        """Record that a request arrived now on a connection. Its idle time starts at 0 again."""
        if transport is not None:
            self.requested[transport] = time.monotonic()

    def make_room(self) -> None:
        """Close connections until a further connection is within `MAX_CONNECTIONS`.

        Connections that never sent a request are closed first, and among them the oldest.
        """
        self.forget_closed()
        order = sorted(self.accepted, key=lambda transport: (transport in self.requested, self.last_sign(transport)))
        for transport in order[: max(0, len(order) - MAX_CONNECTIONS + 1)]:
            self.abort(transport)

    def close_overdue(self) -> None:
        """Close connections whose next request has not come within `HEAD_SECONDS` or `IDLE_SECONDS`."""
        self.forget_closed()
        now = time.monotonic()
        for transport in list(self.accepted):
            seconds = IDLE_SECONDS if transport in self.requested else HEAD_SECONDS
            if now - self.last_sign(transport) > seconds:
                self.abort(transport)

    def last_sign(self, transport: asyncio.BaseTransport) -> float:
        return self.requested.get(transport, self.accepted[transport])

    def forget_closed(self) -> None:
        for transport in [each for each in self.accepted if each.is_closing()]:
            self.drop(transport)

    def abort(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        self.drop(transport)

    def drop(self, transport: asyncio.BaseTransport) -> None:
        self.accepted.pop(transport, None)
        self.requested.pop(transport, None)


async def listen(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for all addresses of `host`, on one port. Port 0 selects a free port.

    Raises:
        OSError: an address is unknown or in use.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            listener = socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG)
            listeners.append(listener)
            listener.setblocking(False)
            port = listener.getsockname()[1]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners
