"""Files beside the stream: the parts of one collection, packed into chunks of a call of their own.

One upload lives as long as one call. Many small files share a chunk; the call's flow control is the back-pressure down
to the reader of the environment's files. Nothing is kept: an upload that broke is made again from its first file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpc import aio

from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import SchedulerError
from agent.protocol.translate import UploadEnd, part_message, upload_header_message
from agent.protocol.wire import agent_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.protocol.wire.agent_pb2_grpc import SchedulerAsyncStub

    UploadCall = aio.StreamUnaryCall[wire.ArtifactChunk, wire.UploadReceipt]

MAX_DATA = 256 << 10
# Paths and framing are counted too, so that a chunk of many empty files stays small.
PART_OVERHEAD = 64


class Packer:
    """Fills chunks with parts; counts what passes."""

    def __init__(self, header: wire.UploadHeader) -> None:
        self.chunk = wire.ArtifactChunk(header=header)
        self.room = MAX_DATA
        self.files = 0
        self.bytes = 0

    def feed(self, part: FilePart) -> Iterator[wire.ArtifactChunk]:
        """Take a part and yield the chunks that it filled."""
        if isinstance(part, FileData):
            yield from self.feed_data(part.data)
            return
        if isinstance(part, FileEnd):
            self.files += 1
        self.chunk.parts.append(part_message(part))
        self.room -= PART_OVERHEAD + (len(part.path) if isinstance(part, FileStart) else 0)
        if self.room <= 0:
            yield self.full()

    def feed_data(self, data: bytes) -> Iterator[wire.ArtifactChunk]:
        """Take bytes of a file, cut where a chunk is full."""
        self.bytes += len(data)
        position = 0
        while position < len(data):
            piece = data[position : position + self.room]
            position += len(piece)
            self.chunk.parts.append(wire.ArtifactPart(data=piece))
            self.room -= len(piece)
            if self.room <= 0:
                yield self.full()

    def full(self) -> wire.ArtifactChunk:
        """Return the chunk that was filled and begin another."""
        chunk, self.chunk, self.room = self.chunk, wire.ArtifactChunk(), MAX_DATA
        return chunk

    def end(self) -> wire.ArtifactChunk:
        """Return the last chunk."""
        self.chunk.parts.append(part_message(UploadEnd(self.files, self.bytes)))
        return self.full()


async def upload(
    stub: SchedulerAsyncStub,
    key: Key,
    agent_id: str,
    parts: AsyncIterator[FilePart],
    metadata: tuple[tuple[str, str], ...] = (),
) -> wire.UploadReceipt:
    """Send all parts; return the receipt when the scheduler says that all are stored.

    Raises:
        SchedulerError: the call broke, or the receipt does not agree with what was sent.
        Exception: whatever `parts` raises.
    """
    packer = Packer(upload_header_message(key, agent_id))
    call: UploadCall = stub.UploadArtifacts(metadata=metadata)
    try:
        async for part in parts:
            for chunk in packer.feed(part):
                await write(call, chunk)
        await write(call, packer.end())
        receipt = await answer(call)
    finally:
        call.cancel()
    if (receipt.files, receipt.bytes) != (packer.files, packer.bytes):
        raise SchedulerError(
            f"the scheduler stored {receipt.files} files of {receipt.bytes} bytes; "
            f"{packer.files} files of {packer.bytes} bytes were sent"
        )
    return receipt


async def write(call: UploadCall, chunk: wire.ArtifactChunk) -> None:
    """Send one chunk, waiting while the call's window is full."""
    try:
        await call.write(chunk)
    except (aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError):
        await answer(call)
        raise SchedulerError("the scheduler answered before all files were sent") from None


async def answer(call: UploadCall) -> wire.UploadReceipt:
    """Wait for the receipt."""
    try:
        await call.done_writing()
        return await call
    except aio.AioRpcError as error:
        raise SchedulerError(f"files were not stored: {error.code().name}: {error.details()}") from error
