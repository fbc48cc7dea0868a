"""The helper of a warm pod, as a scripted API server plays it: it takes an order in two phases, and it can be sealed.

It obeys the same messages as `agent.cluster.in_pod.order_server`, over the exec of a fake API server. A WarmHelper
lives as long as its pod.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import WSMsgType, web

from agent.domain.json import Object
from tests.fakes.helper_log import SUCCESS, accept

Step = Callable[[str, str], Awaitable[None]]


class Torn(Exception):
    """Raised by a step: the exec breaks here."""


async def no_step(name: str, step: str) -> None:
    """Do nothing. The default of `step`."""


class WarmHelper:
    """The helper of the warm pod `name`.

    `step` is called at "order stored", "go arrived", "begun" and "sealed". It may wait, or raise Torn. `orders` are the
    orders whose commands have begun. `connections` are the execs that are open.
    """

    def __init__(self, name: str, step: Step = no_step) -> None:
        self.name = name
        self.step = step
        self.used = False
        self.stored: tuple[web.WebSocketResponse, Object] | None = None
        self.orders: list[Object] = []
        self.alive = True
        self.connections: list[web.Request] = []

    def break_connections(self) -> None:
        for request in self.connections:
            if request.transport is not None:
                request.transport.abort()

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Answer one exec of the errand `deliver_order`."""
        self.connections.append(request)
        try:
            return await self.converse(request)
        finally:
            self.connections.remove(request)

    async def converse(self, request: web.Request) -> web.WebSocketResponse:
        socket = await accept(request)
        # A node sends an empty frame of standard output at the start of an exec.
        await socket.send_bytes(b"\x01")
        buffer, wanted = b"", 0
        with suppress(ConnectionError):
            async for message in socket:
                if message.type is not WSMsgType.BINARY or message.data[:1] != b"\x00":
                    continue
                buffer += message.data[1:]
                try:
                    while (wanted and len(buffer) >= wanted) or (not wanted and b"\n" in buffer):
                        if wanted:
                            order, buffer, wanted = json.loads(buffer[:wanted]), buffer[wanted:], 0
                            await self.store(socket, order)
                            continue
                        line, _, buffer = buffer.partition(b"\n")
                        wanted = await self.obey(socket, json.loads(line))
                except Torn:
                    if request.transport is not None:
                        request.transport.abort()
                    break
        if self.stored is not None and self.stored[0] is socket:
            self.stored = None
        return socket

    async def answer(self, socket: web.WebSocketResponse, message: Object, *, last: bool = True) -> None:
        await socket.send_bytes(b"\x01" + json.dumps(message).encode() + b"\n")
        if last:
            await socket.send_bytes(SUCCESS)

    async def store(self, socket: web.WebSocketResponse, order: Object) -> None:
        if self.orders:
            await self.answer(socket, {"begun": True})
        elif self.used or not self.alive:
            self.used = True
            await self.answer(socket, {"refused": "container action does not run"})
        else:
            self.used, self.stored = True, (socket, order)
            await self.step(self.name, "order stored")
            await self.answer(socket, {"stored": True}, last=False)

    async def obey(self, socket: web.WebSocketResponse, message: Object) -> int:
        """Obey a message. Return the number of bytes of the order that follows it."""
        if "order" in message:
            return int(message["order"])
        if "seal" in message:
            if not self.orders:
                self.used, self.stored = True, None
            await self.step(self.name, "sealed")
            await self.answer(socket, {"begun": bool(self.orders)})
            return 0
        await self.step(self.name, "go arrived")
        if self.stored is None or self.stored[0] is not socket or self.stored[1]["nonce"] != message["go"]:
            await self.answer(socket, {"refused": "there is no stored order with this nonce"})
            return 0
        self.orders.append(self.stored[1])
        await self.step(self.name, "begun")
        await self.answer(socket, {"begun": True})
        return 0
