"""Keep an exec open in a warm pod that waits, so that a delivery does not wait for the start of an exec.

The start of an exec takes longer than the rest of a delivery. A `StandbyExec` lives as long as its warm pod waits.
If its connection breaks, it opens another exec after a pause. A delivery that finds no open exec opens its own.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import structlog

from agent.aio import cancel_and_wait
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.cluster.api.exec import ExecStream

log = structlog.get_logger(__name__)

# Seconds until another exec is opened after the last one broke.
REOPEN_SECONDS = 30.0


class StandbyExec:
    """The open exec of one warm pod. Owned by the warm pod, and then by the delivery.

    `open_exec` returns a stream that has not connected yet.
    """

    def __init__(self, pod: str, open_exec: Callable[[], ExecStream]) -> None:
        self.pod = pod
        self.open_exec = open_exec
        self.stack = AsyncExitStack()
        self.stream: ExecStream | None = None
        self.task = asyncio.create_task(self.keep_open(), name=f"standby exec of {pod}")

    async def keep_open(self) -> None:
        """Keep an exec open until cancelled. The exec stays open after the cancellation."""
        failed = False
        while True:
            try:
                stream = await self.stack.enter_async_context(self.open_exec())
                self.stream, failed = stream, False
                # The helper sends nothing before it gets an order. The node sends an empty frame at the start. This
                # loop also answers pings and sees a dead peer.
                async for data in stream:
                    if data:
                        break
                why = "it ended, or its helper sent an answer without an order"
            except ClusterError as error:
                why = error.message
            # The metric of requests counts each failure. The log has only the first of several failures in a row.
            if not failed:
                log.info("the standby exec of a warm pod is opened again", pod=self.pod, error=why)
            failed = True
            self.stream = None
            await self.close_stream()
            await asyncio.sleep(REOPEN_SECONDS)

    async def close_stream(self) -> None:
        try:
            await self.stack.aclose()
        except ClusterError as error:
            log.debug("a standby exec was not closed in order", pod=self.pod, error=error.message)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[ExecStream | None]:
        """Stop waiting, and yield the open exec, None if there is none. Close the exec at the end of the block."""
        try:
            await cancel_and_wait(self.task)
            yield self.stream
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the exec. A second call does nothing."""
        await cancel_and_wait(self.task)
        self.stream = None
        await self.close_stream()
