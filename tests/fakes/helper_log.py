"""The log of an action as container `helper` keeps it. Tests of the log path compare their results with this model.

A HelperLog has the log file of container `helper` and the container's stdout. The stdout is a sequence of frames, which
are pieces of the log, each behind a header. The simulated node serves the stdout as containerd does. Containerd removes
one CR before each LF, and a new reader gets nothing of a log file that was rotated away. `serve_errand` simulates the
program that the agent runs by exec to read the log file. A HelperLog lives as long as a test.
"""

from __future__ import annotations

import asyncio
import json
import zlib

from aiohttp import web

KEY = 0x5EA1C1
MAX_PAYLOAD = 64 * 1024
BLOCK = 256 * 1024


# Maximum number of log bytes in one websocket message.
MESSAGE = 1 << 15
SUCCESS = b'\x03{"metadata":{},"status":"Success"}'


def frame(offset: int, payload: bytes, key: int = KEY) -> bytes:
    """Return `payload` as a frame, in the form in which container `helper` writes a piece of the log to its stdout.

    `offset` is the position of `payload` in the log. `key` is the start value of the checksum.
    """
    flag = b"" if payload.endswith(b"\n") else b"p"
    checksum = zlib.crc32(payload, key)
    head = b"\x1b]5397;%d;%d;%08x;%b\x07" % (offset, len(payload), checksum, flag)
    # The newline that the frame adds is replaced too if the payload ends in CR.
    return head + (payload + (b"\n" if flag else b"")).replace(b"\r\n", b"\r\r\n")


def last_frame(size: int, dropped: int, key: int = KEY) -> bytes:
    """Return the frame that ends a log of `size` bytes.

    `dropped` is the number of bytes over the log's size limit. `key` is the start value of the checksum.
    """
    return b"\x1b]5397;%d;0;%08x;e;%d\x07\n" % (size, zlib.crc32(b"", key), dropped)


class HelperLog:
    """The log of one action. `content` is the log file of container `helper`, and `stdout` the container's stdout."""

    def __init__(self, key: int = KEY, *, keeps_cr: bool = False) -> None:
        self.key = key
        self.keeps_cr = keeps_cr
        self.content = b""
        self.stdout = b""
        self.ended = False
        self.dropped = 0
        self.current = 0
        """Position in `stdout` at which the node's current log file begins."""

    def write(self, data: bytes, *, largest: int = MAX_PAYLOAD) -> None:
        """Append `data` to the log file, and to the stdout in frames with payloads of at most `largest` bytes."""
        for start in range(0, len(data), largest):
            payload = data[start : start + largest]
            self.stdout += frame(len(self.content), payload, self.key)
            self.content += payload

    def skip(self, data: bytes) -> None:
        """Append `data` only to the log file.

        Container `helper` does this while the node does not read the container's stdout.
        """
        self.content += data

    def end(self, dropped: int = 0) -> None:
        """End the log. `dropped` is the number of bytes over the log's size limit."""
        self.ended, self.dropped = True, dropped
        self.stdout += last_frame(len(self.content), dropped, self.key)

    def rotate(self) -> None:
        """Begin a new log file on the node. `body` then returns nothing of the old file."""
        self.current = len(self.stdout)

    def body(self) -> bytes:
        """Return the bytes of the stdout that the node serves to a new reader."""
        text = self.stdout[self.current :]
        return text if self.keeps_cr else text.replace(b"\r\n", b"\n")

    def blocks(self, offset: int, *, until: int | None = None) -> bytes:
        """Return the log file from byte `offset` to byte `until`, by default to the end, in blocks with headers.

        The program that reads the log file in container `helper` writes the same bytes. `report` returns the line that
        the program writes after them.
        """
        content = self.content[:until]
        parts = []
        for start in range(offset, len(content), BLOCK):
            data = content[start : start + BLOCK]
            parts += [json.dumps({"at": start, "bytes": len(data)}).encode() + b"\n", data]
        return b"".join(parts)

    def report(self) -> bytes:
        """Return the last line of the program that reads the log file: the log's size and whether the log has ended."""
        size = len(self.content)
        found = {"end": {"size": size, "dropped": self.dropped}} if self.ended else {"now": size}
        return json.dumps(found).encode() + b"\n"


async def accept(request: web.Request) -> web.WebSocketResponse:
    """Accept an exec request as a websocket, as an API server does."""
    socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
    await socket.prepare(request)
    return socket


async def serve_errand(request: web.Request, log: HelperLog) -> web.WebSocketResponse:
    """Answer an exec of the program that reads the log file in container `helper`.

    If the last argument of the program is `once`, send the present log file. Otherwise send the log file until the log
    ends.
    """
    socket = await accept(request)
    position, how = request.query.getall("command")[-2:]
    sent = int(position)
    while True:
        data, ended = log.blocks(sent), log.ended
        sent = len(log.content)
        for start in range(0, len(data), MESSAGE):
            await socket.send_bytes(b"\x01" + data[start : start + MESSAGE])
        if how == "once" or ended:
            break
        await asyncio.sleep(0.005)
    await socket.send_bytes(b"\x01" + log.report())
    await socket.send_bytes(SUCCESS)
    return socket
