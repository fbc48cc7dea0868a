"""Collect the files of an action from its pod into an object store.

One collection is one exec of the program `send_objects` in container `helper`. The program puts the files into the
store, and this module signs its requests. The exec carries about 1 KB for each object, and about 40 bytes for each file
of a pack. As in `collect`, the collection counts only if all of it is right, and the caller may start again.
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
from agent.cluster.in_pod.objects.file_records import decode_records
from agent.cluster.in_pod.objects.outgoing import PACK_BYTES, PACK_FILES
from agent.domain.artifacts import FileEnd, FileStart, StoredObject
from agent.domain.events import ArtifactSummary
from agent.domain.observations import Collected
from agent.objects.errors import StoreError
from agent.objects.grants import MAX_BATCH, MAX_PARTS, SHA256_BYTES, WantedObject

if TYPE_CHECKING:
    from agent.cluster.api.exec import ExecStream
    from agent.cluster.artifacts.archive_reader import ArchiveLimits
    from agent.cluster.in_pod.objects.file_records import FileRecord
    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FilePart
    from agent.objects.grants import Grants

# Maximum number of bytes of a line of the program: 30 files, each with a path and up to 10,000 hashes of parts.
MAX_LINE = 24 << 20
# Number of bytes of one frame of the exec.
FRAME_BYTES = 64 << 10


def objects_command(rules: ArtifactRules, limits: ArchiveLimits, *, workspace: str, packs: bool = False) -> list[str]:
    """Return the command that puts the files from container `helper` into the store.

    `packs`: many small files become one object.
    """
    bounds = [limits.files, limits.file_bytes, limits.total_bytes, int(limits.seconds * 0.95)]
    numbers = [*bounds, int(packs), len(rules.paths)]
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
    except (ArchiveError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        why = repr(error)[:1000]
        raise CollectionBroken(f"the program's answer cannot be used: {why}", retryable=True) from error
    finally:
        await asyncio.shield(grants.abort())


async def lines(stream: AsyncIterator[memoryview]) -> AsyncIterator[bytes]:
    """Yield the lines of a program's output.

    Raises:
        ArchiveError: a line is too long, or the last one has no end.
    """
    rest = bytearray()
    async for chunk in stream:
        # A long line that arrives in small pieces is copied once, not once for each piece.
        start, *more = bytes(chunk).split(b"\n")
        rest += start
        if more:
            yield bytes(rest)
            for line in more[:-1]:
                yield line
            rest = bytearray(more[-1])
        if len(rest) > MAX_LINE:
            raise ArchiveError("a line is too long")
    if rest:
        raise ArchiveError("the output ends within a line")


class Conversation:
    """The agent's side of one exec of `send_objects`. Owned by `collect_objects`.

    `batch` has the objects of the last question, each with its files. `tables` has the files of the packs of the next
    question.
    """

    def __init__(self, stream: ExecStream, grants: Grants, limits: ArchiveLimits, ca: str) -> None:
        self.stream = stream
        self.grants = grants
        self.limits = limits
        self.ca = ca
        self.batch: list[tuple[WantedObject, list[FileRecord]]] = []
        self.tables: list[bytes] = []
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
        if line.startswith(b"#"):
            self.tables.append(line[1:])
            if len(self.tables) > MAX_BATCH:
                raise ArchiveError("a batch is too large")
            return []
        message = json.loads(line)
        if "want" in message:
            self.batch = [self.wanted(each) for each in message["want"]]
            self.tables.clear()
            if len(self.batch) > MAX_BATCH:
                raise ArchiveError("a batch is too large")
            await self.send(await self.grants.requests([wanted for wanted, _ in self.batch]))
            return []
        if "stored" in message:
            return [part for each in message["stored"] for part in await self.stored(each)]
        raise StoreError(
            f"the object store did not take the files: {str(message['unavailable'])[:1000]}", retryable=True
        )

    def wanted(self, value: dict[str, Any]) -> tuple[WantedObject, list[FileRecord]]:
        """Return an object of the program's question, with its files. The pod is not trusted, so limits hold here."""
        size, parts = int(value["size"]), tuple(bytes.fromhex(each) for each in value["parts"])
        digest = bytes.fromhex(value["sha256"])
        if not 0 < len(parts) <= MAX_PARTS or any(len(each) != SHA256_BYTES for each in (*parts, digest)):
            raise ArchiveError("a file has no hash")
        if "path" not in value:
            records = decode_records(self.tables.pop(0))
            self.check_pack(records, size)
            return WantedObject(b"", 0, size, digest, parts), records
        record = (str(value["path"]), int(value["mode"]), size, digest, 0)
        path = self.checked_path(record)
        return WantedObject(path, record[1] & 0o777, size, digest, parts), [record]

    def checked_path(self, record: FileRecord) -> bytes:
        path = checked_name(record[0].encode("utf-8", "surrogateescape"))
        if not 0 <= record[2] <= self.limits.file_bytes:
            raise ArchiveError(f"{path!r} has {record[2]} bytes, more than {self.limits.file_bytes}")
        return path

    def check_pack(self, records: list[FileRecord], size: int) -> None:
        if not 0 < len(records) <= PACK_FILES or size > PACK_BYTES or sum(each[2] for each in records) != size:
            raise ArchiveError("a pack is too large, or its files do not fill it")
        for record in records:
            self.checked_path(record)

    async def send(self, requests: list[list[dict[str, object]]]) -> None:
        """Send the signed requests of a batch as one line."""
        data = json.dumps({"grants": requests, "ca": self.ca}).encode() + b"\n"
        for at in range(0, len(data), FRAME_BYTES):
            await self.stream.send(data[at : at + FRAME_BYTES])

    async def stored(self, value: dict[str, Any]) -> list[FilePart]:
        """Complete a stored object and return the parts of its files."""
        wanted, records = self.batch[int(value["id"])]
        name = await self.grants.complete(wanted, [str(each) for each in value["etags"]])
        self.files += len(records)
        self.bytes += wanted.size
        if self.files > self.limits.files or self.bytes > self.limits.total_bytes:
            raise ArchiveError("more files or bytes than allowed")
        found: list[FilePart] = []
        for path, mode, size, digest, start in records:
            found.append(FileStart(path.encode("utf-8", "surrogateescape"), mode & 0o777, size))
            found += [StoredObject(name.uri, name.etag, start), FileEnd(digest)]
        return found

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
