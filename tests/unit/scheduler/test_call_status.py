"""The status of a call to a real gRPC server that ends the call while the agent writes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from agent.scheduler.call_status import SentStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    Context = aio.ServicerContext[bytes, bytes]

# About one call in ten shows the order in which grpc.aio replaces the status.
CALLS = 200


class Refusing(grpc.GenericRpcHandler):
    """Ends each call after the second message."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.stream_unary_rpc_method_handler(self.refuse)

    async def refuse(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        await anext(requests)
        await anext(requests)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")
        raise AssertionError


async def status_after_writes(channel: aio.Channel) -> tuple[grpc.StatusCode, str]:
    call: aio.StreamUnaryCall[bytes, bytes] = channel.stream_unary("/test/upload")()
    status = SentStatus(call)
    with suppress(aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError):
        while True:
            await call.write(bytes(256 << 10))
    with pytest.raises(aio.AioRpcError):
        await call
    return await status.read()


async def test_a_failed_write_does_not_replace_the_status_that_the_server_sent() -> None:
    server = aio.server()
    server.add_generic_rpc_handlers((Refusing(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            found = {await status_after_writes(channel) for _ in range(CALLS)}
    finally:
        await server.stop(None)
    assert found == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "no room")}
