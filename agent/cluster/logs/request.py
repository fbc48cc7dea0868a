"""One request for a container's log and its response, read in bytes as they arrive.

A `LogRequest` lives as long as its `async with` block. It raises `ClusterError` for everything that it cannot read.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import aiohttp

from agent.aio import cancel_and_wait
from agent.cluster.logs.line_reader import whole_second
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef
    from agent.domain.log_cursor import Cursor


class LogRequest:
    """One log request and its response. Owned by the `async with` block of its caller.

    The first read sends the request, because the kubelet sends no headers before the first byte of the log.
    """

    def __init__(
        self, client: Client, target: ContainerRef, cursor: Cursor, timeout: aiohttp.ClientTimeout, **query: str
    ) -> None:
        self.client = client
        self.path = f"/api/v1/namespaces/{target.namespace}/pods/{target.pod}/log"
        self.query = {"container": target.container, "timestamps": "true", **query}
        if cursor.timestamp:
            self.query["sinceTime"] = whole_second(cursor.timestamp)
        self.timeout = timeout
        self.stack = AsyncExitStack()
        self.response: aiohttp.ClientResponse | None = None
        self.reading: asyncio.Task[bytes] | None = None

    async def __aenter__(self) -> LogRequest:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.reading:
            # The next request starts at the cursor, so it reads the bytes of the cancelled read again.
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
            return await self.response.content.readany()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ClusterError(f"get pods/log: the answer broke off: {error!r}", retryable=True) from error

    async def block(self, ended: asyncio.Task[None], silence: float, settle: float) -> bytes | None:
        """Return the next bytes, b"" at the end, None after `silence` seconds without a byte.

        `ended` is done when the container no longer runs. From then on, `settle` seconds replace `silence`.
        """
        if self.reading is None:
            self.reading = asyncio.create_task(self.read(), name="log: read")
        if not ended.done():
            await asyncio.wait({self.reading, ended}, timeout=silence, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not self.reading.done():
            ended.result()
            await asyncio.wait({self.reading}, timeout=settle)
        if not self.reading.done():
            return None
        reading, self.reading = self.reading, None
        return reading.result()
