"""Download of the files of one input, in a gRPC call of its own and not over the stream.

A download lives as long as its call. The call's flow control slows down the scheduler, so that the agent keeps no file
in memory. A broken download starts again from its first file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc import aio

from agent.domain.artifacts import FileEnd
from agent.domain.errors import InputMissing, SchedulerError
from agent.protocol.translate import UploadEnd, part
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.protocol.wire.agent_pb2_grpc import SchedulerAsyncStub

    FetchCall = aio.UnaryStreamCall[wire.FetchInputRequest, wire.ArtifactChunk]


def fetch_call(
    stub: SchedulerAsyncStub, key: Key, agent_id: str, number: int, metadata: tuple[tuple[str, str], ...] = ()
) -> FetchCall:
    """Start the call that returns the files of input `number`, counted from 1."""
    request = wire.FetchInputRequest(
        action_id=key.action_id, attempt=key.attempt, claim=key.claim, agent_id=agent_id, input=number
    )
    return stub.FetchInput(request, metadata=metadata)


async def receive_chunk(call: FetchCall) -> wire.ArtifactChunk | None:
    """Return the next chunk of a call, None at its end.

    Raises:
        InputMissing: the scheduler no longer stores a file.
        SchedulerError: the call ended with another error.
    """
    try:
        chunk = await call.read()
    except aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            raise InputMissing(error.details() or "the scheduler no longer stores a file") from error
        text = f"the scheduler did not send the files: {error.code().name}: {error.details()}"
        raise SchedulerError(text) from error
    return chunk if isinstance(chunk, wire.ArtifactChunk) else None


async def parts_of(next_chunk: Callable[[], Awaitable[wire.ArtifactChunk | None]]) -> AsyncGenerator[FilePart, None]:
    """Yield the parts of files in the chunks that `next_chunk` returns, up to the part that ends the call.

    Raises:
        SchedulerError: the call ended before this part, or the part names another number of files.
    """
    files = 0
    while (chunk := await next_chunk()) is not None:
        for message in chunk.parts:
            match part(message):
                case None:
                    pass  # only a newer version knows this kind of part
                case UploadEnd() as end:
                    if end.files != files:
                        raise SchedulerError(f"{files} files arrived, the scheduler sent {end.files}")
                    return
                case each:
                    files += isinstance(each, FileEnd)
                    yield each
    raise SchedulerError("the scheduler ended the call before all files were sent")
