"""The files of an action as they travel: start, data, end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class FileStart:
    """A file follows. `path` is relative, without "..", as on the disk."""

    path: bytes
    mode: int
    size: int


@dataclass(frozen=True, slots=True)
class FileData:
    """The next bytes of the file that was started."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FileEnd:
    """The file is whole; `sha256` is of the bytes that were read, equal to what the environment computed."""

    sha256: bytes


FilePart = FileStart | FileData | FileEnd
