"""Reads the archive that the collector sends, and believes none of it.

Pure: bytes go in by `feed`, parts of files come out; nothing touches a disk, and no file is ever held whole. The stream
is a tar of regular files in the dialect that `collector` writes, its manifest, and the end of the archive; anything
else in it (links, devices, strange extensions, paths that leave the workspace, more than the limits allow) is refused,
whoever wrote it. The reader hashes what it sees and writes the file lines of the manifest itself: they must be the very
bytes that the collector sent. A reader lives for one collection; after an error it is of no use.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from agent.actions import FileData, FileEnd, FileStart, LeftOut
from agent.cluster.collector import MANIFEST_TYPE, MAX_NAME
from agent.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512
MAX_PAX = 8 * 1024
MAX_LINE = 64 * 1024
ZEROS = bytes(BLOCK)


class ArchiveError(AgentError):
    """The stream is not what the collector sends, is not whole, or is over a limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one collection may bring: a number of files, bytes of one file and of all, and seconds."""

    files: int
    file_bytes: int
    total_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the collector says about the whole.

    `left_out` names at most 100 files, `left_out_files` counts all. `unmatched` are declared paths without a file,
    `exceeded` is the declared file that ended the collection. `changed` files were written to while they were read.
    """

    files: int
    total_bytes: int
    left_out: tuple[LeftOut, ...]
    left_out_files: int
    unmatched: tuple[str, ...]
    exceeded: LeftOut | None
    changed: tuple[bytes, ...]


class End(Enum):
    """The end of the archive: nothing may follow."""

    END = "end"


Item = FileStart | FileData | FileEnd | Manifest | End


@dataclass(slots=True)
class Header:
    """One header block, checked."""

    kind: bytes
    name: bytes
    mode: int
    size: int


class ArchiveReader:
    """Turns chunks of the stream, cut anywhere, into parts of files."""

    def __init__(self, limits: Limits) -> None:
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
        """Take the next bytes and return what they complete.

        Raises:
            ArchiveError: the stream is wrong; what was returned before is not to be used.
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
        """Say that no more will come.

        Raises:
            ArchiveError: the archive did not end.
        """
        if not self.ended:
            where = f"in {self.file.path!r}" if self.file else f"after {self.files} files"
            raise ArchiveError(f"the archive was cut {where}")

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
        yield End.END

    def _member(self, header: Header) -> Iterator[Item]:
        size = int(self.pax.pop(b"size", b"%d" % header.size))
        name = self.pax.pop(b"path", header.name)
        if header.kind == b"x":
            if size > MAX_PAX or self.pax_body is not None:
                raise ArchiveError("an extended header that is too long, or follows another")
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

    def _checked_manifest(self, reader: ManifestReader) -> Manifest:
        manifest = reader.close()
        if (manifest.files, manifest.total_bytes) != (self.files, self.total_bytes):
            raise ArchiveError(
                f"{self.files} files of {self.total_bytes} bytes arrived, "
                f"the manifest tells of {manifest.files} of {manifest.total_bytes}"
            )
        if reader.file_lines.digest() != self.manifest_lines.digest():
            raise ArchiveError("the files that arrived are not those of the manifest")
        return manifest


class ManifestReader:
    """Reads the manifest line by line; the lines of files are only hashed."""

    def __init__(self) -> None:
        self.file_lines = sha256()
        self.rest = b""
        self.said: dict[str, list[list[object]]] = {}
        self.lines = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the manifest."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > MAX_LINE:
            raise ArchiveError("a line of the manifest is too long")
        for line in lines:
            if line.startswith(b'["file", '):
                self.file_lines.update(line + b"\n")
            else:
                self._other(line)

    def _other(self, line: bytes) -> None:
        self.lines += 1
        if self.lines > 2000:
            raise ArchiveError("the manifest has too many lines")
        try:
            kind, *values = json.loads(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise ArchiveError(f"not a line of a manifest: {line[:200]!r}") from error
        self.said.setdefault(str(kind), []).append(values)

    def close(self) -> Manifest:
        """Return what was said.

        Raises:
            ArchiveError: the manifest is cut or makes no sense.
        """
        try:
            if self.rest or set(self.said) - {"changed", "left", "unmatched", "exceeded", "end"}:
                raise ValueError
            ((files, size, left_out_files),) = self.said["end"]
            exceeded = [left_out(*values) for values in self.said.get("exceeded", [])]
            return Manifest(
                files=number(files),
                total_bytes=number(size),
                left_out=tuple(left_out(*values) for values in self.said.get("left", [])),
                left_out_files=number(left_out_files),
                unmatched=tuple(printable(glob) for (glob,) in self.said.get("unmatched", [])),
                exceeded=exceeded[0] if exceeded else None,
                changed=tuple(encoded(path) for (path,) in self.said.get("changed", [])),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ArchiveError("the manifest makes no sense") from error


def number(value: object) -> int:
    """Return VALUE, which must be a whole number that is not negative."""
    if not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def encoded(path: object) -> bytes:
    """Return a path of the manifest as it is on the disk."""
    return str(path).encode("utf-8", "surrogateescape")


def printable(text: object) -> str:
    """Return a text of the manifest in a form that every encoder takes."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def left_out(path: object, why: object) -> LeftOut:
    """Return one file that was not sent."""
    return LeftOut(encoded(path), printable(why))


def parse_header(block: bytes) -> Header:
    """Check the 512 bytes of a header and return what matters of it.

    Raises:
        ArchiveError: it is none, or a field is not in the collector's form.
    """
    if block[257:265] != b"ustar\x0000":
        raise ArchiveError("a block that is no header of the archive")
    if octal(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 32:
        raise ArchiveError("a header with a wrong checksum")
    if block[157:257].strip(b"\0") or block[345:].strip(b"\0"):
        raise ArchiveError("a header with a link or a prefix")
    name = block[:100].rstrip(b"\0")
    return Header(kind=block[156:157], name=name, mode=octal(block[100:108]), size=octal(block[124:136]))


def octal(field: bytes) -> int:
    """Read an octal number; neither signs nor base 256 are taken.

    Raises:
        ArchiveError: it is none.
    """
    digits = field.rstrip(b"\0 ")
    if not digits or digits.strip(b"01234567"):
        raise ArchiveError(f"a header with {field!r} for a number")
    return int(digits, 8)


def parse_pax(body: bytes) -> dict[bytes, bytes]:
    """Read an extended header: `path` and `size` and nothing else, each at most once.

    Raises:
        ArchiveError: it is not of the collector's form.
    """
    found: dict[bytes, bytes] = {}
    while body:
        length, space, _ = body[:10].partition(b" ")
        if not space or not length.isdigit() or not 0 < int(length) <= len(body):
            raise ArchiveError("an extended header with a wrong length")
        record, body = body[: int(length)], body[int(length) :]
        key, equals, value = record[len(length) + 1 :].partition(b"=")
        if not equals or not value.endswith(b"\n") or key not in (b"path", b"size") or key in found:
            raise ArchiveError(f"an extended header with {key[:50]!r}")
        found[key] = value[:-1]
    if not found or not found.get(b"size", b"0").isdigit() or len(found.get(b"size", b"0")) > 18:
        raise ArchiveError("an extended header without a meaning")
    return found


def checked_name(name: bytes) -> bytes:
    """Return NAME, which stays inside the folder that it is relative to.

    Raises:
        ArchiveError: it may not.
    """
    if len(name) > MAX_NAME or b"\0" in name or any(part in (b"", b".", b"..") for part in name.split(b"/")):
        raise ArchiveError(f"a file with the path {name[:200]!r}")
    return name
