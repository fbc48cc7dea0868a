"""A TCP proxy with named faults, in front of a scheduler or an API server. A seed determines all random choices.

A Proxy lives as long as its `async with`. Its faults:

- `latency`: the maximum delay before each piece of data, in seconds.
- `pieces`: the maximum number of bytes of a piece.
- `rate`: bytes per second towards the target.
- `swallow`: a black hole, in which no data passes and no connection closes.
- `fin`, `reset`: all connections end, by FIN or by RST.
- `half_open`: all connections to the target end, and their clients get no FIN.
- `stall`: no more data passes to the client that has received most.
- `reset_after`: all connections end by RST, once, after a number of further bytes.

`heal` ends the faults that do not end by themselves. `total` is the number of bytes that were forwarded, both ways.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter

READ = 1 << 16
LINGER_NONE = struct.pack("ii", 1, 0)


class Proxy:
    """A TCP server on `address` that forwards each connection to `target` (HOST:PORT)."""

    def __init__(self, target: str, seed: int = 0) -> None:
        self.host, _, port = target.rpartition(":")
        self.port = int(port)
        self.random = random.Random(seed)
        self.latency = 0.0
        self.pieces = 0
        self.rate = 0
        self.hole = False
        self.forwarded: Counter[asyncio.StreamWriter] = Counter()
        self.stalled: set[asyncio.StreamWriter] = set()
        self.budget = -1
        self.total = 0
        self.pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.healed = asyncio.Event()
        self.healed.set()

    async def __aenter__(self) -> Proxy:
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        self.reset()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.wait_closed()

    # ---- faults

    def swallow(self) -> None:
        """Drop all data of all connections from now on, also of later connections. No connection is closed."""
        self.hole = True
        self.healed.clear()

    def heal(self) -> None:
        """End every fault that does not end by itself.

        If the proxy has dropped data (`swallow`), reset all connections, because they have lost data.
        """
        self.latency, self.pieces, self.rate = 0.0, 0, 0
        if self.hole:
            self.hole = False
            self.reset()
        self.healed.set()

    def fin(self) -> None:
        """Close all connections with FIN."""
        for pair in list(self.pairs):
            for writer in pair:
                writer.close()

    def reset(self) -> None:
        """Close all connections with RST."""
        for pair in list(self.pairs):
            for writer in pair:
                if not writer.is_closing():
                    raw = writer.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
                    writer.transport.abort()

    def half_open(self) -> None:
        """Close the connections to the target. Drop all data from now on, so that no client gets a FIN."""
        self.swallow()
        for _, target in list(self.pairs):
            target.close()

    def stall(self) -> None:
        """Forward no more data to the client that has received the most bytes."""
        (busiest, _), *_ = self.forwarded.most_common(1)
        self.stalled.add(busiest)

    def reset_after(self, size: int) -> None:
        """Reset all connections once, after `size` more bytes were forwarded."""
        self.budget = size

    # ---- connections

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection of a client to the target, in both directions, until one side ends."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            onward, target = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.close()
            return
        pair = (writer, target)
        self.pairs.add(pair)
        copies = {
            asyncio.create_task(self.copy(reader, target, up=True), name="proxy up"),
            asyncio.create_task(self.copy(onward, writer, up=False), name="proxy down"),
        }
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
            # While the fault `swallow` drops all data, the end of one side must not reach the other side.
            await self.healed.wait()
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)
            self.pairs.discard(pair)
            self.stalled.discard(writer)
            del self.forwarded[writer]
            for each in pair:
                each.close()

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Forward data with the current faults until the connection ends.

        `up` is true for data that goes to the target.
        """
        try:
            while data := await reader.read(READ):
                for piece in self.cut(data):
                    if self.latency:
                        await asyncio.sleep(self.latency * self.random.random())
                    if self.rate and up:
                        await asyncio.sleep(len(piece) / self.rate)
                    if not self.hole and writer not in self.stalled:
                        writer.write(piece)
                        await writer.drain()
                        self.count(writer, len(piece), up=up)
        except OSError:
            return

    def count(self, writer: asyncio.StreamWriter, size: int, *, up: bool) -> None:
        """Count `size` forwarded bytes. Reset all connections when the bytes that `reset_after` allows are used up.

        `up` is true for data that goes to the target.
        """
        self.total += size
        if not up:
            self.forwarded[writer] += size
        if self.budget >= 0:
            self.budget -= size
            if self.budget < 0:
                self.reset()

    def cut(self, data: bytes) -> list[bytes]:
        """Return the data in pieces.

        If the fault `pieces` is set, the sizes of the pieces are random, otherwise there is one piece.
        """
        slices = []
        while self.pieces and data:
            size = self.random.randint(1, self.pieces)
            slices.append(data[:size])
            data = data[size:]
        return slices or [data]


class Threaded:
    """A Proxy in a thread with an event loop of its own, for tests that run no event loop."""

    def __init__(self, target: str, seed: int = 0) -> None:
        self.target = target
        self.seed = seed
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()), name="proxy", daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    async def serve(self) -> None:
        self.loop, self.over = asyncio.get_running_loop(), asyncio.Event()
        async with Proxy(self.target, self.seed) as self.proxy:
            self.ready.set()
            await self.over.wait()

    @property
    def address(self) -> str:
        return self.proxy.address

    def fault(self, name: str, *arguments: int) -> None:
        """Call the method `name` of the proxy, which starts or ends a fault, in the proxy's thread."""
        self.loop.call_soon_threadsafe(getattr(self.proxy, name), *arguments)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(10)
