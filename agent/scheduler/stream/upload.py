"""Upload of the files of one session, in a gRPC call of its own and not over the stream.

An upload lives as long as its call. Many small files share one chunk. The call's flow control slows down the copy of
files out of the pod, so that the agent keeps no file in memory. A broken upload starts again from its first file.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpc import aio

from agent.domain.artifacts import FileData, FileEnd, FileStart, StoredObject
from agent.domain.errors import SchedulerError
from agent.protocol.translate import UploadEnd, part_message, upload_header_message
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.call_status import SentStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.protocol.wire.agent_pb2_grpc import SchedulerAsyncStub

    UploadCall = aio.StreamUnaryCall[wire.ArtifactChunk, wire.UploadReceipt]

# Maximum number of bytes in one chunk. The contract (ArtifactChunk.parts) names the same limit.
MAX_DATA = 256 << 10
# Number of bytes that each part counts for in addition to its data, so that a chunk of many empty files stays small.
PART_OVERHEAD = 64


class Packer:
    """Packs the parts of one upload into chunks. Counts files and bytes, because the scheduler's receipt must
    name the same numbers.
    """

    def __init__(self, header: wire.UploadHeader) -> None:
        self.chunk = wire.ArtifactChunk(header=header)
        self.room = MAX_DATA
        self.files = 0
        self.bytes = 0
        self.size = 0  # of the current file

    def feed(self, part: FilePart) -> Iterator[wire.ArtifactChunk]:
        """Add a part and yield the chunks that are now full."""
        if isinstance(part, FileData):
            yield from self.feed_data(part.data)
            return
        if isinstance(part, FileEnd):
            self.files += 1
        elif isinstance(part, FileStart):
            self.size = part.size
        elif isinstance(part, StoredObject):
            self.bytes += self.size
        self.chunk.parts.append(part_message(part))
        self.room -= PART_OVERHEAD + (len(part.path) if isinstance(part, FileStart) else 0)
        if self.room <= 0:
            yield self.next_chunk()

    def feed_data(self, data: bytes) -> Iterator[wire.ArtifactChunk]:
        """Add bytes of a file, split at the end of each chunk."""
        self.bytes += len(data)
        position = 0
        while position < len(data):
            piece = data[position : position + self.room]
            position += len(piece)
            self.chunk.parts.append(wire.ArtifactPart(data=piece))
            self.room -= len(piece)
            if self.room <= 0:
                yield self.next_chunk()

    def next_chunk(self) -> wire.ArtifactChunk:
        """Return the current chunk and start the next one."""
        chunk, self.chunk, self.room = self.chunk, wire.ArtifactChunk(), MAX_DATA
        return chunk

    def last_chunk(self) -> wire.ArtifactChunk:
        """Return the last chunk, with the totals of the upload."""
        self.chunk.parts.append(part_message(UploadEnd(self.files, self.bytes)))
        return self.next_chunk()


async def upload(
    stub: SchedulerAsyncStub,
    key: Key,
    agent_id: str,
    parts: AsyncIterator[FilePart],
    metadata: tuple[tuple[str, str], ...] = (),
) -> wire.UploadReceipt:
    """Send all parts and return the scheduler's receipt for the stored files.

    Raises:
        SchedulerError: the call broke, or the receipt differs from the files that were sent.
        Exception: whatever `parts` raises.
    """
    packer = Packer(upload_header_message(key, agent_id))
    call: UploadCall = stub.UploadArtifacts(metadata=metadata)
    status = SentStatus(call)
    try:
        async for part in parts:
            for chunk in packer.feed(part):
                await write(call, status, chunk)
        await write(call, status, packer.last_chunk())
        receipt = await receive_receipt(call, status)
    finally:
        call.cancel()
    if (receipt.files, receipt.bytes) != (packer.files, packer.bytes):
        raise SchedulerError(
            f"the scheduler stored {receipt.files} files of {receipt.bytes} bytes; "
            f"{packer.files} files of {packer.bytes} bytes were sent"
        )
    return receipt


async def write(call: UploadCall, status: SentStatus, chunk: wire.ArtifactChunk) -> None:
    """Send one chunk. Waits while gRPC's flow control accepts no more data.

    Raises:
        SchedulerError: the call has ended. The error carries the call's status.
    """
    try:
        await call.write(chunk)
    except (aio.AioRpcError, asyncio.InvalidStateError, aio.UsageError):
        await receive_receipt(call, status)
        raise SchedulerError("the scheduler ended the upload before all files were sent") from None


async def receive_receipt(call: UploadCall, status: SentStatus) -> wire.UploadReceipt:
    """End the agent's side of the call and wait for the receipt.

    Raises:
        SchedulerError: the call ended with an error.
    """
    try:
        await call.done_writing()
        return await call
    except aio.AioRpcError as error:
        code, details = await status.read()
        raise SchedulerError(f"the scheduler did not store the files: {code.name}: {details}") from error
