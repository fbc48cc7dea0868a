"""Read the archive that the collector sends, as input from an untrusted pod.

This module has a push parser of its own, because `tarfile` blocks on a file object and accepts links, devices and more.
This parser accepts plain files only. The parser performs no I/O: bytes go in through `feed`, and parts of files come
out. No file is ever in memory as a whole.

The stream is a tar archive of regular files in the form that `collect_files` writes, then the manifest, then the end.
The reader refuses everything else: links, devices, unknown extensions, paths that leave the workspace, and more than
the limits allow. The reader hashes the files and writes their manifest lines itself. The lines must equal the lines
that the collector sent. A reader lives for one collection, and cannot be used after an error.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from agent.cluster.artifacts.archive_manifest import ArchiveManifest, ManifestReader
from agent.cluster.artifacts.tar_header import ArchiveError, checked_name, parse_header, parse_pax
from agent.cluster.in_pod.files.collect_files import MANIFEST_TYPE
from agent.domain.artifacts import FileData, FileEnd, FileStart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.artifacts.tar_header import Header
    from agent.settings import ArtifactSettings

BLOCK = 512
MAX_PAX = 8 * 1024
ZEROS = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits of one collection: number of files, bytes of one file and of all files, and seconds.

    An immutable value.
    """

    files: int
    file_bytes: int
    total_bytes: int
    seconds: float

    @classmethod
    def of(cls, settings: ArtifactSettings, seconds: float) -> ArchiveLimits:
        return cls(settings.max_files, settings.max_file_size, settings.max_total_size, seconds)


class ArchiveEnd(Enum):
    """The item of `ArchiveReader.feed` that stands for the end of the archive. No other item follows."""

    END = "end"


Item = FileStart | FileData | FileEnd | ArchiveManifest | ArchiveEnd


class ArchiveReader:
    """Turns chunks of the archive, split at any byte, into parts of files. Owned by one collection."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self.limits = limits
        self.files = 0
        self.total_bytes = 0
        self.ended = False
        self.manifest: ManifestReader | None = None
        self.manifest_lines = sha256()
        self.head = b""
        self.pax: dict[bytes, bytes] = {}
        self.pax_body: bytearray | None = None
        self.file: FileStart | None = None
        self.digest = sha256()
        self.left = 0
        self.padding = 0

    def feed(self, data: bytes | memoryview) -> list[Item]:
        """Read the next bytes and return the items that they complete.

        Raises:
            ArchiveError: the stream is not acceptable. Items that were returned before must not be used.
        """
        items: list[Item] = []
        view = memoryview(data)
        while view:
            if self.left:
                view = self._body(view, items)
            elif self.padding:
                skipped = min(self.padding, len(view))
                self.padding -= skipped
                view = view[skipped:]
            else:
                wanted = BLOCK - len(self.head)
                self.head += bytes(view[:wanted])
                view = view[wanted:]
                if len(self.head) == BLOCK:
                    block, self.head = self.head, b""
                    items.extend(self._block(block))
        return items

    def close(self) -> None:
        """Check that the archive is complete, after its last byte.

        Raises:
            ArchiveError: the archive has no end.
        """
        if not self.ended:
            where = f"in {self.file.path!r}" if self.file else f"after {self.files} files"
            raise ArchiveError(f"the archive broke off {where}")

    def _block(self, block: bytes) -> Iterator[Item]:
        if self.ended:
            if block != ZEROS:
                raise ArchiveError("something follows the end of the archive")
        elif block == ZEROS:
            yield from self._end()
        elif self.manifest:
            raise ArchiveError("something follows the manifest")
        else:
            yield from self._member(parse_header(block))

    def _end(self) -> Iterator[Item]:
        if self.manifest is None:
            raise ArchiveError("the archive ends without a manifest")
        self.ended = True
        yield ArchiveEnd.END

    def _member(self, header: Header) -> Iterator[Item]:
        size = int(self.pax.pop(b"size", b"%d" % header.size))
        name = self.pax.pop(b"path", header.name)
        if header.kind == b"x":
            if size > MAX_PAX or self.pax_body is not None:
                raise ArchiveError("an extended header is too long or follows another")
            self.pax_body = bytearray()
        elif header.kind == MANIFEST_TYPE:
            self.manifest = ManifestReader()
        elif header.kind == b"0":
            self.pax_body = None
            yield self._start(FileStart(checked_name(name), header.mode & 0o777, size))
        else:
            raise ArchiveError(f"a member of type {header.kind!r}")
        self.left, self.padding = size, -size % BLOCK
        if not size:
            yield from self._done()

    def _start(self, file: FileStart) -> FileStart:
        self.files += 1
        self.total_bytes += file.size
        if self.files > self.limits.files:
            raise ArchiveError(f"more than {self.limits.files} files")
        if file.size > self.limits.file_bytes:
            raise ArchiveError(f"{file.path!r} has {file.size} bytes, more than {self.limits.file_bytes}")
        if self.total_bytes > self.limits.total_bytes:
            raise ArchiveError(f"more than {self.limits.total_bytes} bytes")
        self.file, self.digest = file, sha256()
        return file

    def _body(self, view: memoryview, items: list[Item]) -> memoryview:
        piece, rest = view[: self.left], view[self.left :]
        self.left -= len(piece)
        if self.file:
            self.digest.update(piece)
            items.append(FileData(bytes(piece)))
        elif self.manifest:
            self.manifest.feed(bytes(piece))
        elif self.pax_body is not None:
            self.pax_body += piece
        if not self.left:
            items.extend(self._done())
        return rest

    def _done(self) -> Iterator[Item]:
        if self.file:
            file, self.file = self.file, None
            path = file.path.decode("utf-8", "surrogateescape")
            line = json.dumps(["file", path, file.size, file.mode, self.digest.hexdigest()])
            self.manifest_lines.update(line.encode("ascii") + b"\n")
            yield FileEnd(self.digest.digest())
        elif self.manifest:
            yield self._checked_manifest(self.manifest)
        elif self.pax_body is not None:
            self.pax = parse_pax(bytes(self.pax_body))

    def _checked_manifest(self, reader: ManifestReader) -> ArchiveManifest:
        manifest = reader.close()
        if (manifest.files, manifest.total_bytes) != (self.files, self.total_bytes):
            raise ArchiveError(
                f"{self.files} files of {self.total_bytes} bytes arrived, "
                f"the manifest names {manifest.files} of {manifest.total_bytes}"
            )
        if reader.file_lines.digest() != self.manifest_lines.digest():
            raise ArchiveError("the files that arrived are not those of the manifest")
        return manifest
