"""A minimal HTTP/1.1 server for the benchmark: requests, answers, streams without end, and websockets for exec.

A `Connection` lives as long as its socket. A request costs a tenth of the CPU time that it costs in aiohttp's server,
so that the server takes little CPU from the agents on the same machine. The server supports only what the agent's
client sends: requests with a Content-Length, one after the other.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from dataclasses import dataclass
from email.utils import formatdate
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from collections.abc import Callable

REASONS = {200: "OK", 201: "Created", 404: "Not Found", 409: "Conflict", 410: "Gone"}
UPGRADE = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
PROTOCOL = "v4.channel.k8s.io"
CLOSE, PING, PONG = 0x8, 0x9, 0xA
HIGH_WATER = 1 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """One HTTP request of a client. `key` is its header Sec-WebSocket-Key, `command` the command line of an exec."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    key: str
    command: list[str]


class Service(Protocol):
    """The server behind the connections, which answers their requests.

    Its methods run in the event loop and must not block.
    """

    connections: set[Connection]

    def on_request(self, connection: Connection, request: Asked) -> None:
        """Answer a request over its connection, now or later."""


class Connection(asyncio.Protocol):
    """The server's end of one client's socket.

    A Service sets `on_lost` to a function that is called if the client disconnects during a stream.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.buffer = b""
        self.streams = False
        self.websocket = False
        self.on_lost: Callable[[], None] | None = None
        self.room = asyncio.Event()
        self.room.set()

    # ---- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self.service.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.service.connections.discard(self)
        self.room.set()
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        """Make tasks that write streams wait (asyncio calls this if the client reads too slowly)."""
        self.room.clear()

    def resume_writing(self) -> None:
        """Let tasks that write streams continue (asyncio calls this when the client has read enough)."""
        self.room.set()

    @property
    def is_open(self) -> bool:
        return not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        """Add received data to the buffer. Handle all complete requests or websocket frames in the buffer."""
        self.buffer += data
        while self.frame() if self.websocket else self.request():
            continue

    def request(self) -> bool:
        """Handle the first request in the buffer. Return False if the buffer contains no complete request."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        begin = end + 4
        if len(self.buffer) < begin + length:
            return False
        body, self.buffer = self.buffer[begin : begin + length], self.buffer[begin + length :]
        method, target, _ = first.split(" ")
        path, _, query = target.partition("?")
        key = headers.get("sec-websocket-key", "")
        words = parse_qsl(query)
        command = [value for name, value in words if name == "command"]
        self.service.on_request(self, Asked(method, unquote(path), dict(words), body, key, command))
        return True

    # ---- answers

    def answer(self, status: int, body: bytes) -> None:
        """Send a whole answer with this status and this JSON body."""
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        self.transport.write(head(status) + length + body)

    def begin(self, kind: bytes = b"application/json") -> None:
        """Begin an answer that is a stream of any length. `kind` is its Content-Type."""
        self.streams = True
        self.transport.write(head(200, kind) + b"Transfer-Encoding: chunked\r\n\r\n")

    def send(self, data: bytes) -> None:
        """Send `data` as the next part of the answer that `begin` has begun."""
        if data and self.is_open:
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """End the answer that `begin` has begun. The client may then send another request over the connection."""
        self.streams, self.on_lost = False, None
        if self.is_open:
            self.transport.write(b"0\r\n\r\n")

    # ---- websockets

    def upgrade(self, key: str) -> None:
        """Switch the connection to the websocket protocol. `key` is the Sec-WebSocket-Key of the client's request."""
        self.websocket = True
        accept = base64.b64encode(hashlib.sha1(key.encode() + UPGRADE.encode()).digest()).decode()  # noqa: S324
        self.transport.write(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n".encode()
        )

    def message(self, data: bytes, kind: int = 2) -> None:
        """Send `data` as one websocket frame. `kind` is the opcode of the frame. The opcode 2 means binary data."""
        size = len(data)
        if size < 126:
            length = bytes([size])
        elif size < 1 << 16:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
        if self.is_open:
            self.transport.write(bytes([0x80 | kind]) + length + data)

    def frame(self) -> bool:
        """Handle the first websocket frame in the buffer: a ping or a close. Return False if no frame is complete."""
        if len(self.buffer) < 6 or len(self.buffer) < 6 + (self.buffer[1] & 0x7F):
            return False
        kind, size = self.buffer[0] & 0xF, self.buffer[1] & 0x7F
        mask, masked = self.buffer[2:6], self.buffer[6 : 6 + size]
        self.buffer = self.buffer[6 + size :]
        data = bytes(byte ^ mask[index % 4] for index, byte in enumerate(masked))
        if kind == PING:
            self.message(data, PONG)
        elif kind == CLOSE:
            self.message(data, CLOSE)
            self.transport.close()
        return True


class Clock:
    """Returns the date for HTTP headers. It formats the date at most once a second, to save CPU time."""

    def __init__(self) -> None:
        self.second = 0
        self.text = b""

    def date(self) -> bytes:
        """Return the current date for an HTTP header."""
        now = int(time.time())
        if now != self.second:
            self.second, self.text = now, formatdate(now, usegmt=True).encode()
        return self.text


CLOCK = Clock()


def head(status: int, kind: bytes = b"application/json") -> bytes:
    """Return the status line and headers of an answer as an API server writes them, without Content-Length.

    `kind` is the Content-Type.
    """
    return b"HTTP/1.1 %d %b\r\nAudit-Id: 0\r\nCache-Control: no-cache, private\r\nContent-Type: %b\r\nDate: %b\r\n" % (
        status,
        REASONS[status].encode(),
        kind,
        CLOCK.date(),
    )
