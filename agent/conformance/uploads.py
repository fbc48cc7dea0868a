"""Checks of UploadArtifacts, in the name of the agent that owns an attempt."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import grpc

from agent.conformance import points
from agent.conformance.player import Breach
from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from agent.conformance.attempt import Attempt
    from agent.conformance.findings import Findings

# An ordinary file, an empty file, and a path that is not UTF-8. The second call has another list of files.
FIRST = ((b"out/result.txt", b"first\n"), (b"empty", b""))
SECOND = ((b"out/result.txt", b"second\n"), (b"caf\xe9", b"\x00" * 300_000))
CHUNK = 256 << 10


async def check_uploads(findings: Findings, attempt: Attempt) -> None:
    needs = (points.FENCED,)
    if await findings.check(points.UPLOAD, check_receipt(attempt, FIRST), needs):
        await findings.check(points.REPEATED, check_receipt(attempt, SECOND))
    wrong = parts_of(FIRST, digest=b"\0" * 32)
    await findings.check(points.HASH, check_refused(attempt, wrong, "a wrong sha256"), needs)
    for path in (b"../escaped", b"/etc/escaped"):
        work = check_refused(attempt, parts_of(((path, b"x"),)), f"the path {path.decode()!r}")
        if not await findings.check(points.PATH, work, needs):
            break
    await findings.check(points.INCOMPLETE, check_refused(attempt, parts_of(FIRST)[:-1], "no UploadEnd"), needs)
    await findings.check(points.STALE, check_stale(attempt), needs)


def parts_of(files: Sequence[tuple[bytes, bytes]], digest: bytes = b"") -> list[wire.ArtifactPart]:
    """Return the parts of a call. `digest` replaces the sha256 of each file."""
    parts = []
    for path, data in files:
        parts.append(wire.ArtifactPart(file=wire.FileStart(path=path, mode=0o644, size=len(data))))
        parts += [wire.ArtifactPart(data=data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
        parts.append(wire.ArtifactPart(file_end=wire.FileEnd(sha256=digest or hashlib.sha256(data).digest())))
    total = sum(len(data) for _, data in files)
    parts.append(wire.ArtifactPart(end=wire.UploadEnd(files=len(files), bytes=total)))
    return parts


async def upload(attempt: Attempt, parts: Sequence[wire.ArtifactPart], claim: int) -> wire.UploadReceipt | str:
    """Upload files and return the receipt. If the call failed, return its status and details."""
    player = attempt.player
    action_id, number, _ = attempt.key

    async def chunks() -> AsyncIterator[wire.ArtifactChunk]:
        yield wire.ArtifactChunk(
            header=wire.UploadHeader(action_id=action_id, attempt=number, claim=claim, agent_id=player.agent_id)
        )
        for part in parts:
            yield wire.ArtifactChunk(parts=[part])

    assert player.channel is not None  # noqa: S101 - the player that owns an attempt is connected
    stub = agent_pb2_grpc.SchedulerStub(player.channel)
    try:
        receipt: wire.UploadReceipt = await stub.UploadArtifacts(
            chunks(), metadata=player.target.metadata(), timeout=player.options.timeout
        )
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {error.details()}"
    return receipt


async def check_receipt(attempt: Attempt, files: Sequence[tuple[bytes, bytes]]) -> None:
    receipt = await upload(attempt, parts_of(files), attempt.claim)
    if isinstance(receipt, str):
        raise Breach(f"the upload was answered with {receipt}")
    sent = (len(files), sum(len(data) for _, data in files))
    if (receipt.files, receipt.bytes) != sent:
        found = f"{receipt.files} files and {receipt.bytes} bytes"
        raise Breach(f"the receipt has {found}, the agent sent {sent[0]} files and {sent[1]} bytes")


async def check_refused(attempt: Attempt, parts: Sequence[wire.ArtifactPart], what: str) -> None:
    """Check that a wrong upload fails, or that its receipt counts no file."""
    receipt = await upload(attempt, parts, attempt.claim)
    if isinstance(receipt, wire.UploadReceipt) and receipt.files:
        raise Breach(f"an upload with {what} got a receipt for {receipt.files} files")


async def check_stale(attempt: Attempt) -> None:
    receipt = await upload(attempt, parts_of(FIRST), attempt.claim - 1)
    if isinstance(receipt, wire.UploadReceipt):
        raise Breach(f"an upload of claim {attempt.claim - 1} got a receipt, but claim {attempt.claim} owns the action")
