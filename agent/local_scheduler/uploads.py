"""Files of an action on the scheduler's disk: received beside their place, moved into it when all of them are whole.

A path comes from whoever ran the action, so it is taken as hostile: relative, without "..", and never followed through
a symbolic link, whatever stands in the folder already. An upload that breaks leaves nothing; one that is whole replaces
what an earlier one of the same action has left. All methods block and are called on a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart
from agent.domain.errors import AgentError
from agent.domain.paths import safe_components, write_all
from agent.pipeline.events import FileStored, Transfer
from agent.protocol.translate import UploadEnd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_FILES = 100_000
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class UploadRefused(AgentError):
    """What was sent is not taken; the message says why."""


def checked_path(path: bytes) -> tuple[bytes, ...]:
    """Return the parts of a path that stays within its folder.

    Raises:
        UploadRefused: it does not.
    """
    try:
        return safe_components(path)
    except ValueError as error:
        raise UploadRefused(f"{path[:200]!r} is not a path within the folder of the action") from error


class ActionFolder:
    """The folder of an action. Opens its folders one by one, so that no link is followed; made where missing."""

    def __init__(self, folder: Path, action: str) -> None:
        self.folder = folder
        self.action = action
        self.parts: tuple[bytes, ...] | None = None
        self.handle = -1

    def __enter__(self) -> ActionFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """Close the folder that is open."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1
        self.parts = None

    def enter(self, parts: tuple[bytes, ...]) -> int:
        """Return a handle of a folder within the action's, good until the next call."""
        if parts == self.parts:
            return self.handle
        self.leave()
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in (os.fsencode(self.action), *parts):
            try:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=handle)
                inner = os.open(part, FOLDER, dir_fd=handle)
            finally:
                os.close(handle)
            handle = inner
        self.handle, self.parts = handle, parts
        return handle

    def put(self, source: str, path: bytes) -> None:
        """Move a file to its path.

        Raises:
            UploadRefused: something that is no plain file or folder is in the way.
        """
        *folders, name = checked_path(path)
        try:
            os.rename(source, name, dst_dir_fd=self.enter(tuple(folders)))
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise UploadRefused(f"{path!r} cannot be stored: {error.strerror}") from error
        except OSError as error:
            if error.errno in NOT_A_NAME:
                raise UploadRefused(f"{path[:200]!r} cannot be stored: {error.strerror}") from error
            raise

    def remove(self, path: bytes) -> None:
        """Remove a file of an earlier upload, if it is there."""
        *folders, name = checked_path(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(name, dir_fd=self.enter(tuple(folders)))


NOT_A_NAME = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


class Upload:
    """One call: files arrive part by part into a folder of its own until `finish` or `abandon`."""

    def __init__(self, folder: Path, action: str, *, durable: bool) -> None:
        self.folder = folder
        self.action = action
        self.durable = durable
        folder.mkdir(parents=True, exist_ok=True)
        self.staging = Path(tempfile.mkdtemp(prefix=".upload-", dir=folder))
        self.files: list[FileStored] = []
        self.paths: set[bytes] = set()
        self.ended = False
        self.received = 0
        self.start: FileStart | None = None
        self.handle = -1
        self.digest = hashlib.sha256()
        self.written = 0

    def feed(self, parts: Iterable[FilePart | UploadEnd | None]) -> None:
        """Take the next parts in order; None is of an unknown kind and ignored.

        Raises:
            UploadRefused: they are not what the contract says.
        """
        for part in parts:
            if part is None:
                continue
            if self.ended:
                raise UploadRefused("something follows the end")
            match part:
                case FileStart():
                    self.begin(part)
                case FileData():
                    self.write(part.data)
                case FileEnd():
                    self.complete(part.sha256)
                case UploadEnd():
                    self.end(part)

    def begin(self, start: FileStart) -> None:
        """Open the next file."""
        if self.start is not None:
            raise UploadRefused(f"{self.start.path!r} has no end")
        checked_path(start.path)
        if start.path in self.paths:
            raise UploadRefused(f"{start.path!r} comes twice")
        if len(self.files) >= MAX_FILES:
            raise UploadRefused(f"more than {MAX_FILES} files")
        self.handle = os.open(self.staged(len(self.files)), NEW, 0o600)
        self.start = start
        self.digest = hashlib.sha256()
        self.written = 0

    def transfer(self) -> Transfer:
        """Say how far it is."""
        start = self.start
        path, size = (start.path, start.size) if start else (b"", 0)
        return Transfer(len(self.files), self.received, path, self.written if start else 0, size)

    def staged(self, number: int) -> str:
        """Where a file is until all are whole."""
        return f"{self.staging}/{number}"

    def write(self, data: bytes) -> None:
        """Write the next bytes of the open file."""
        if self.start is None:
            raise UploadRefused("bytes without a file")
        self.written += len(data)
        self.received += len(data)
        if self.written > self.start.size:
            raise UploadRefused(f"{self.start.path!r} is longer than its {self.start.size} bytes")
        self.digest.update(data)
        write_all(self.handle, data)

    def complete(self, sha256: bytes) -> None:
        """Close the open file if it is whole."""
        start = self.start
        if start is None:
            raise UploadRefused("an end without a file")
        if self.written != start.size:
            raise UploadRefused(f"{start.path!r} has {self.written} bytes instead of {start.size}")
        if self.digest.digest() != sha256:
            raise UploadRefused(f"the sha256 of {start.path!r} is wrong")
        os.fchmod(self.handle, start.mode & 0o777)
        os.close(self.handle)
        self.handle = -1
        self.start = None
        self.paths.add(start.path)
        self.files.append(FileStored(start.path, start.size, sha256))

    def end(self, end: UploadEnd) -> None:
        """Check that all has arrived."""
        if self.start is not None:
            raise UploadRefused(f"{self.start.path!r} has no end")
        total = sum(each.size for each in self.files)
        if (end.files, end.bytes) != (len(self.files), total):
            raise UploadRefused(f"{len(self.files)} files of {total} bytes came, not {end.files} of {end.bytes}")
        self.ended = True

    def finish(self, before: Sequence[FileStored]) -> list[FileStored]:
        """Move the files into their place, remove those of an earlier upload that are no more; return what is there.

        Raises:
            UploadRefused: the end is missing, or something is in the way.
        """
        if not self.ended:
            raise UploadRefused("the end is missing")
        with ActionFolder(self.folder, self.action) as place:
            for old in before:
                if old.path not in self.paths:
                    place.remove(old.path)
            for number, file in enumerate(self.files):
                place.put(self.staged(number), file.path)
        self.staging.rmdir()
        if self.durable:
            # Once for all: a synchronisation of each of thousands of small files takes minutes.
            os.sync()
        return self.files

    def abandon(self) -> None:
        """Leave nothing behind; safe after `finish`."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
        shutil.rmtree(self.staging, ignore_errors=True)
