"""What the collector says at the end of an archive: every file with its hash, and what was not sent.

Pure. The lines of files are not kept: whoever read the files wrote the same lines, and their hashes must be equal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

from agent.cluster.artifacts.tar_header import ArchiveError
from agent.domain.events import LeftOut

MAX_LINE = 64 * 1024
MAX_LINES = 2000


@dataclass(frozen=True, slots=True)
class ArchiveManifest:
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
        if self.lines > MAX_LINES:
            raise ArchiveError("the manifest has too many lines")
        try:
            kind, *values = json.loads(line)
        except (ValueError, TypeError, RecursionError) as error:
            raise ArchiveError(f"not a line of a manifest: {line[:200]!r}") from error
        self.said.setdefault(str(kind), []).append(values)

    def close(self) -> ArchiveManifest:
        """Return what was said.

        Raises:
            ArchiveError: the manifest is cut or makes no sense.
        """
        try:
            if self.rest or set(self.said) - {"changed", "left", "unmatched", "exceeded", "end"}:
                raise ValueError
            ((files, size, left_out_files),) = self.said["end"]
            exceeded = [left_out(*values) for values in self.said.get("exceeded", [])]
            return ArchiveManifest(
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
