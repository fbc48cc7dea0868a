"""The manifest at the end of an archive: every file with its hash, and the files that the collector did not send.

The collector is the program `collect_files` in the pod. The module performs no I/O. A `ManifestReader` lives for one
archive. The `ManifestReader` does not keep the manifest's lines about files, only one hash over these lines. The
`ArchiveReader` writes the same lines from the files that arrived, and the two hashes must be equal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

from agent.cluster.artifacts.tar_header import ArchiveError
from agent.domain.events import LeftOut

# Maximum number of bytes of a line of the manifest. `MAX_LINES` is the maximum number of lines that do not describe a
# sent file.
MAX_LINE = 64 * 1024
MAX_LINES = 2000


@dataclass(frozen=True, slots=True)
class ArchiveManifest:
    """What the collector reports about a whole collection. An immutable value.

    `left_out` names at most 100 files, and `left_out_files` is the number of all left-out files. `unmatched` are
    declared paths without a file, and `links` are symbolic links on the way to such paths. `exceeded` is the declared
    file over a limit that ended the collection. `changed` files were written while the collector read them.
    """

    files: int
    total_bytes: int
    left_out: tuple[LeftOut, ...]
    left_out_files: int
    unmatched: tuple[str, ...]
    exceeded: LeftOut | None
    changed: tuple[bytes, ...]
    links: tuple[str, ...] = ()


class ManifestReader:
    """Reads the manifest of one archive line by line. Owned by an `ArchiveReader`."""

    def __init__(self) -> None:
        self.file_lines = sha256()
        self.rest = b""
        self.records: dict[str, list[list[object]]] = {}
        self.lines = 0

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the manifest.

        Raises:
            ArchiveError: a line is malformed, or a limit is exceeded.
        """
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > MAX_LINE:
            raise ArchiveError("a line of the manifest is too long")
        for line in lines:
            if line.startswith(b'["file", '):
                self.file_lines.update(line + b"\n")
            else:
                self._read_record(line)

    def _read_record(self, line: bytes) -> None:
        self.lines += 1
        if self.lines > MAX_LINES:
            raise ArchiveError("the manifest has too many lines")
        try:
            kind, *values = json.loads(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise ArchiveError(f"not a line of a manifest: {line[:200]!r}") from error
        self.records.setdefault(str(kind), []).append(values)

    def close(self) -> ArchiveManifest:
        """Return the manifest.

        Raises:
            ArchiveError: the manifest is incomplete or malformed.
        """
        try:
            if self.rest or set(self.records) - {"changed", "left", "unmatched", "link", "exceeded", "end"}:
                raise ValueError
            ((files, size, left_out_files),) = self.records["end"]
            exceeded = [left_out(*values) for values in self.records.get("exceeded", [])]
            return ArchiveManifest(
                files=number(files),
                total_bytes=number(size),
                left_out=tuple(left_out(*values) for values in self.records.get("left", [])),
                left_out_files=number(left_out_files),
                unmatched=tuple(printable(glob) for (glob,) in self.records.get("unmatched", [])),
                exceeded=exceeded[0] if exceeded else None,
                links=tuple(printable(path) for (path,) in self.records.get("link", [])),
                changed=tuple(encoded(path) for (path,) in self.records.get("changed", [])),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ArchiveError("the manifest is incomplete or malformed") from error


def number(value: object) -> int:
    """Return `value` if it is a whole number that is not negative.

    Raises:
        TypeError: the value is anything else.
    """
    if not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def encoded(path: object) -> bytes:
    """Return a path of the manifest as the bytes that the path has in the pod's file system."""
    return str(path).encode("utf-8", "surrogateescape")


def printable(text: object) -> str:
    """Return a text of the manifest without surrogates, which no encoder accepts."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def left_out(path: object, why: object) -> LeftOut:
    """Return the `LeftOut` of a file that the collector did not send."""
    return LeftOut(encoded(path), printable(why))
