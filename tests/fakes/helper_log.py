"""The log of an action as container `helper` keeps it. Tests of the log path compare their results with this model.

The model has the helper's file and its stdout in frames. The node serves the stdout as containerd does: it removes one
CR before each LF, and a new reader gets nothing of a log file that was rotated away. The errand `log` serves the file.
A HelperLog lives as long as a test.
"""

from __future__ import annotations

import asyncio
import json
import zlib

from aiohttp import web

KEY = 0x5EA1C1
MAX_PAYLOAD = 64 * 1024
BLOCK = 256 * 1024


# Number of bytes of a websocket message.
MESSAGE = 1 << 15
SUCCESS = b'\x03{"metadata":{},"status":"Success"}'


def frame(offset: int, payload: bytes, key: int = KEY) -> bytes:
    """Return a frame as the helper writes it."""
    flag = b"" if payload.endswith(b"\n") else b"p"
    checksum = zlib.crc32(payload, key)
    head = b"\x1b]5397;%d;%d;%08x;%b\x07" % (offset, len(payload), checksum, flag)
    # The newline that the frame adds is replaced too if the payload ends in CR.
    return head + (payload + (b"\n" if flag else b"")).replace(b"\r\n", b"\r\r\n")


def last_frame(size: int, dropped: int, key: int = KEY) -> bytes:
    """Return the frame that ends a log of `size` bytes."""
    return b"\x1b]5397;%d;0;%08x;e;%d\x07\n" % (size, zlib.crc32(b"", key), dropped)


class HelperLog:
    """The log of one action. `content` is the file. `frames` are the frames with the position after each."""

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
        """Append to the file and to the stdout, in frames of at most `largest` bytes."""
        for start in range(0, len(data), largest):
            payload = data[start : start + largest]
            self.stdout += frame(len(self.content), payload, self.key)
            self.content += payload

    def skip(self, data: bytes) -> None:
        """Append to the file alone, as the helper does while the node does not take its stdout."""
        self.content += data

    def end(self, dropped: int = 0) -> None:
        """End the log. `dropped` bytes were over its limit."""
        self.ended, self.dropped = True, dropped
        self.stdout += last_frame(len(self.content), dropped, self.key)

    def rotate(self) -> None:
        """Begin a new log file on the node. `body` then returns nothing of the old file."""
        self.current = len(self.stdout)

    def body(self) -> bytes:
        """Return what the node serves to a new reader."""
        text = self.stdout[self.current :]
        return text if self.keeps_cr else text.replace(b"\r\n", b"\n")

    def blocks(self, offset: int, *, until: int | None = None) -> bytes:
        """Return what the errand `log` writes from byte `offset` on, without the report at the end."""
        content = self.content[:until]
        parts = []
        for start in range(offset, len(content), BLOCK):
            data = content[start : start + BLOCK]
            parts += [json.dumps({"at": start, "bytes": len(data)}).encode() + b"\n", data]
        return b"".join(parts)

    def report(self) -> bytes:
        """Return the last line of the errand `log`."""
        size = len(self.content)
        found = {"end": {"size": size, "dropped": self.dropped}} if self.ended else {"now": size}
        return json.dumps(found).encode() + b"\n"


async def accept(request: web.Request) -> web.WebSocketResponse:
    """Accept an exec."""
    socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
    await socket.prepare(request)
    return socket


async def serve_errand(request: web.Request, log: HelperLog) -> web.WebSocketResponse:
    """Answer an exec of the errand `log`. If it follows, it waits for the end of the log."""
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
