"""Collect the files of an action from its pod into an object store.

One collection is one exec of the program `send_objects` in container `helper`. The program puts the files into the
store, and this module signs its requests. The exec carries a few hundred bytes for each file. As in `collect`, the
collection counts only if all of it is right, and the caller may start again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from agent.cluster import packaging
from agent.cluster.api.exec import ExecError
from agent.cluster.artifacts.archive_manifest import ManifestReader
from agent.cluster.artifacts.collect import CollectionBroken, refusal
from agent.cluster.artifacts.tar_header import ArchiveError, checked_name
from agent.domain.artifacts import FileEnd, FileStart, StoredObject
from agent.domain.events import ArtifactSummary
from agent.domain.observations import Collected
from agent.objects.errors import StoreError
from agent.objects.grants import MAX_BATCH, MAX_PARTS, SHA256_BYTES, WantedObject

if TYPE_CHECKING:
    from agent.cluster.api.exec import ExecStream
    from agent.cluster.artifacts.archive_reader import ArchiveLimits
    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FilePart
    from agent.objects.grants import Grants

# Maximum number of bytes of a line of the program: 30 files, each with a path and up to 10,000 hashes of parts.
MAX_LINE = 24 << 20
# Number of bytes of one frame of the exec.
FRAME_BYTES = 64 << 10


def objects_command(rules: ArtifactRules, limits: ArchiveLimits, *, workspace: str) -> list[str]:
    """Return the command that puts the files from container `helper` into the store."""
    numbers = [limits.files, limits.file_bytes, limits.total_bytes, int(limits.seconds * 0.95), len(rules.paths)]
    words = [workspace, packaging.SNAPSHOT, *map(str, numbers), *rules.paths, *rules.exclude]
    return [*packaging.send_objects_program(), *words]


async def collect_objects(
    stream: ExecStream, grants: Grants, limits: ArchiveLimits, ca: str = ""
) -> AsyncGenerator[FilePart | Collected, None]:
    """Yield a start, a stored object and an end for each file, then `Collected`.

    `stream` is an exec of `objects_command` that is not entered yet. `ca` are the PEM certificates of the store's CA.

    Raises:
        CollectionBroken: everything that was yielded is void. If the error is retryable, the caller may start again.
        StoreError: the store does not take the files.
    """
    conversation = Conversation(stream, grants, limits, ca)
    try:
        async with stream:
            async for line in lines(stream):
                for item in await conversation.answer(line):
                    yield item
            if stream.exit_code != 0:
                message = bytes(stream.stderr).decode("utf-8", "replace").strip()[-1000:] or "no message"
                raise CollectionBroken(f"the program ended with {stream.exit_code}: {message}", retryable=True)
        yield conversation.collected()
    except ExecError as error:
        raise CollectionBroken(error.message, retryable=error.retryable, status=error.status) from error
    except (ArchiveError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CollectionBroken(f"the program's answer cannot be used: {error!r}", retryable=True) from error
    finally:
        await asyncio.shield(grants.abort())


async def lines(stream: AsyncIterator[memoryview]) -> AsyncIterator[bytes]:
    """Yield the lines of a program's output.

    Raises:
        ArchiveError: a line is too long, or the last one has no end.
    """
    rest = b""
    async for chunk in stream:
        *whole, rest = (rest + bytes(chunk)).split(b"\n")
        if len(rest) > MAX_LINE:
            raise ArchiveError("a line is too long")
        for line in whole:
            yield line
    if rest:
        raise ArchiveError("the output ends within a line")


class Conversation:
    """The agent's side of one exec of `send_objects`. Owned by `collect_objects`."""

    def __init__(self, stream: ExecStream, grants: Grants, limits: ArchiveLimits, ca: str) -> None:
        self.stream = stream
        self.grants = grants
        self.limits = limits
        self.ca = ca
        self.batch: list[WantedObject] = []
        self.manifest = ManifestReader()
        self.files = self.bytes = 0

    async def answer(self, line: bytes) -> list[FilePart]:
        """Answer one line of the program. Returns the parts of the files that are stored now.

        Raises:
            StoreError: the store does not take the files.
        """
        if line.startswith(b"["):
            self.manifest.feed(line + b"\n")
            return []
        message = json.loads(line)
        if "want" in message:
            self.batch = [self.wanted(each) for each in message["want"]]
            if len(self.batch) > MAX_BATCH:
                raise ArchiveError("a batch is too large")
            await self.send(await self.grants.requests(self.batch))
            return []
        if "stored" in message:
            return [part for each in message["stored"] for part in await self.stored(each)]
        raise StoreError(
            f"the object store did not take the files: {str(message['unavailable'])[:1000]}", retryable=True
        )

    def wanted(self, value: dict[str, Any]) -> WantedObject:
        """Return a file of the program's question. The pod is not trusted, so the limits hold here too."""
        path = checked_name(str(value["path"]).encode("utf-8", "surrogateescape"))
        size, parts = int(value["size"]), tuple(bytes.fromhex(each) for each in value["parts"])
        digest = bytes.fromhex(value["sha256"])
        if not 0 < len(parts) <= MAX_PARTS or any(len(each) != SHA256_BYTES for each in (*parts, digest)):
            raise ArchiveError("a file has no hash")
        if not 0 <= size <= self.limits.file_bytes:
            raise ArchiveError(f"{path!r} has {size} bytes, more than {self.limits.file_bytes}")
        return WantedObject(path, int(value["mode"]) & 0o777, size, digest, parts)

    async def send(self, requests: list[list[dict[str, object]]]) -> None:
        """Send the signed requests of a batch as one line."""
        data = json.dumps({"grants": requests, "ca": self.ca}).encode() + b"\n"
        for at in range(0, len(data), FRAME_BYTES):
            await self.stream.send(data[at : at + FRAME_BYTES])

    async def stored(self, value: dict[str, Any]) -> list[FilePart]:
        """Complete a stored file and return its parts."""
        wanted = self.batch[int(value["id"])]
        name = await self.grants.complete(wanted, [str(each) for each in value["etags"]])
        self.files += 1
        self.bytes += wanted.size
        if self.files > self.limits.files or self.bytes > self.limits.total_bytes:
            raise ArchiveError("more files or bytes than allowed")
        start = FileStart(wanted.path, wanted.mode, wanted.size)
        return [start, StoredObject(name.uri, name.etag), FileEnd(wanted.sha256)]

    def collected(self) -> Collected:
        """Return the result, from the manifest.

        Raises:
            ArchiveError: the manifest is incomplete or does not fit what was stored.
        """
        manifest = self.manifest.close()
        if (manifest.files, manifest.total_bytes) != (self.files, self.bytes):
            raise ArchiveError(f"{self.files} files are stored, the manifest names {manifest.files}")
        summary = ArtifactSummary(manifest.files, manifest.total_bytes, manifest.left_out, manifest.left_out_files)
        return Collected(summary, refusal(manifest))
