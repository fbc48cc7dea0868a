"""The parts in which the files of an action go from the pod to the scheduler: for each file a start, its data, and an
end.

A part lives until the next component has written or sent the part. All parts of a file come before the parts of the
next file.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileStart:
    """The start of a file. `path` is relative to the workspace and has no "..", `size` is in bytes."""

    path: bytes
    mode: int
    size: int


@dataclass(frozen=True, slots=True)
class FileData:
    """The next bytes of the current file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FileEnd:
    """The end of the current file. `sha256` is the digest of the data as computed in the pod."""

    sha256: bytes


FilePart = FileStart | FileData | FileEnd
