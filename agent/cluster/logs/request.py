"""One request for a container's log and its response, read in bytes as they arrive.

A `LogRequest` lives as long as its `async with` block. It raises `ClusterError` for everything that it cannot read.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp

from agent.aio import cancel_and_wait
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef

UNAVAILABLE = b"unable to retrieve container logs for "
# Number of bytes within `Timings.window` from which on the log is read from its file. Each line of a stream is a
# message of its own from the node to the agent, and costs about ten times the CPU time of its bytes.
FAST = 128 * 1024
# Number of bytes that are kept of the beginning of a response.
HEAD = 100
# Seconds of waiting for bytes after which the next bytes are new, and not a part of what the node wrote long ago.
FRESH = 0.1
# Seconds without a read after which the connection may hold bytes that the node wrote long ago.
STALL = 0.5


class LogRequest:
    """One log request and its response. Owned by the `async with` block of its caller.

    The first read sends the request, because the kubelet sends no headers before the first byte of the log. `since` is
    the age in seconds of the oldest line that the node sends, None for all lines. `fresh_at` is the time of the event
    loop at which all bytes that the node had written were read.
    """

    def __init__(
        self,
        client: Client,
        target: ContainerRef,
        *,
        since: int | None,
        follow: bool,
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        self.client = client
        self.path = f"/api/v1/namespaces/{target.namespace}/pods/{target.pod}/log"
        self.query = {"container": target.container}
        if follow:
            self.query["follow"] = "true"
        if since is not None:
            self.query["sinceSeconds"] = str(since)
        self.timeout = timeout
        self.stack = AsyncExitStack()
        self.response: aiohttp.ClientResponse | None = None
        # The task that sends the request and reads the first bytes. Later bytes are read without a task.
        self.reading: asyncio.Task[bytes] | None = None
        self.changed: asyncio.Task[None] | None = None
        # The timeout of the read that ends early when `changed` is done.
        self.limit: asyncio.Timeout | None = None
        self.head = b""
        self.fresh_at: float | None = None
        self.stalled = False
        self.returned_at = now()

    async def __aenter__(self) -> LogRequest:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.reading:
            # The bytes of the cancelled read are not lost: the next request asks for the log from an earlier time on.
            await cancel_and_wait(self.reading, ignore_errors=True)
        await self.stack.aclose()

    async def read(self) -> bytes:
        """Return the next bytes, b"" at the end.

        Raises:
            ClusterError: the request failed, or the response broke off.
        """
        if self.response is None:
            stream = self.client.stream("get", "pods/log", self.path, query=self.query, timeout=self.timeout)
            self.response = await self.stack.enter_async_context(stream)
        try:
            data = await self.response.content.readany()
            if len(self.head) < HEAD:
                self.head += data[:HEAD]
            return data
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ClusterError(f"get pods/log: the answer broke off: {error!r}", retryable=True) from error

    async def block(self, changed: asyncio.Task[None], silence: float) -> bytes | None:
        """Return the next bytes.

        Return b"" at the end of the response, and None after `silence` seconds without a byte or if `changed` is done.
        If `changed` was done before the call, this method returns None only after `silence` seconds.
        """
        began = now()
        self.stalled = self.stalled or began - self.returned_at > STALL
        if self.reading is None and self.response is not None:
            if buffered := self.buffered():
                self.returned_at = began
                return buffered
            block = await self.next_block(changed, silence)
        else:
            block = await self.first_block(changed, silence)
        self.returned_at = now()
        if block is None:
            return None
        self.stalled = self.stalled and self.returned_at - began < FRESH
        if not self.stalled:
            self.fresh_at = self.returned_at
        return block

    async def first_block(self, changed: asyncio.Task[None], silence: float) -> bytes | None:
        """Do the work of `block` before the response has begun. A task keeps the request open between the calls."""
        if self.reading is None:
            self.reading = asyncio.create_task(self.read(), name="log: read")
        waited_for: set[asyncio.Task[bytes] | asyncio.Task[None]] = {self.reading}
        if not changed.done():
            waited_for.add(changed)
        await asyncio.wait(waited_for, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
        if not self.reading.done():
            return None
        reading, self.reading = self.reading, None
        return reading.result()

    async def next_block(self, changed: asyncio.Task[None], silence: float) -> bytes | None:
        """Do the work of `block` on an open response, without a task, because each line of a quiet log is a block.

        A cancelled read leaves the bytes in the response.
        """
        if changed is not self.changed:
            self.changed = changed
            changed.add_done_callback(self.end_wait)
        try:
            async with asyncio.timeout(silence) as limit:
                self.limit = None if changed.done() else limit
                return await self.read()
        except TimeoutError:
            return None
        finally:
            self.limit = None

    def end_wait(self, _: asyncio.Task[None]) -> None:
        if self.limit is not None and not self.limit.expired():
            self.limit.reschedule(now())

    def check(self) -> None:
        """Check that the response is a log, and not the kubelet's error message with status 200.

        Raises:
            ClusterError: the response is the error message.
        """
        if self.head.startswith(UNAVAILABLE):
            raise ClusterError("the node no longer has the container's log")

    def buffered(self) -> bytes:
        """Return the bytes that have arrived already. This needs no asyncio task, which would cost more time."""
        if self.response is None or self.response.content.exception() is not None:
            return b""
        return self.response.content.read_nowait()


class Speed:
    """Measures the speed of a stream over periods of `window` seconds."""

    def __init__(self, window: float) -> None:
        self.window = window
        self.began = now()
        self.size = 0

    def is_fast(self, block: bytes | None) -> bool:
        """Count a block of the stream. Return whether more than `FAST` bytes have arrived in the current period."""
        if now() - self.began > self.window:
            self.began, self.size = now(), 0
        self.size += len(block or b"")
        return self.size > FAST


def now() -> float:
    return asyncio.get_running_loop().time()
