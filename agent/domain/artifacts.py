"""The parts in which files go from the pod to the scheduler and back, and the inputs: files of other actions.

A file is a start, its data, and an end. A part lives until the next component has written or sent the part. All parts
of a file come before the parts of the next file.
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


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The content of the current file, in place of its data: the pod has put it into the object store.

    `uri` names the object, as in "s3://bucket/name". `etag` is the store's own mark of the content of the object.
    `offset` is the position of the file's first byte in the object, because many small files may share an object.
    """

    uri: str
    etag: str
    offset: int = 0


FilePart = FileStart | FileData | StoredObject | FileEnd

# Maximum number of inputs of an action, and of the files in all of them.
MAX_INPUTS = 20
MAX_INPUT_FILES = 20_000


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that the scheduler has stored, and that the agent copies into the workspace before the commands.

    `path` is relative to the folder of its input. `sha256` is the digest of the content. `uri` names its object if the
    file is in an object store, "" if the scheduler has it. `offset` is the position of its first byte in the object.
    """

    path: bytes
    mode: int
    size: int
    sha256: bytes
    uri: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Input:
    """Files of another action, whose name for people is `source`. `to` is a folder of the workspace, "" for its top.

    An input that is not `optional` has at least one file.
    """

    source: str
    to: str
    files: tuple[InputFile, ...]
    optional: bool = False

    def target(self, file: InputFile) -> bytes:
        """Return the path of a file, relative to the workspace."""
        return self.to.encode() + b"/" + file.path if self.to else file.path
