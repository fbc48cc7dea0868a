"""Receive the artifacts of an action and store them in the action's folder.

Files arrive in a staging folder and are moved when all of them are complete. A broken upload leaves nothing behind. A
complete upload replaces the files of an earlier upload of the same action. The commands of the action choose the
paths, so no path is trusted: a path is relative, has no "..", and is never followed through a symbolic link.
All methods block. The caller runs them on a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart, StoredObject
from agent.domain.errors import AgentError
from agent.domain.paths import safe_components, write_all
from agent.pipeline.events import FileStored, Transfer
from agent.protocol.translate import UploadEnd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Maximum number of files in one upload.
MAX_FILES = 100_000
# Maximum number of characters of the name of an object.
MAX_URI = 4096
# Maximum number of bytes of an object.
MAX_OBJECT = 1 << 60
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Error numbers for a path that is well formed but that the file system does not accept.
NOT_A_NAME = {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


class UploadRefused(AgentError):
    """An upload breaks the contract, or its files cannot be stored under their paths. The agent gets the message."""


def checked_path(path: bytes) -> tuple[bytes, ...]:
    """Return the components of a path that stays inside the action's folder.

    Raises:
        UploadRefused: the path leaves the folder or is malformed.
    """
    try:
        return safe_components(path)
    except ValueError as error:
        raise UploadRefused(f"{path[:200]!r} is not a path within the folder of the action") from error


class ActionFolder:
    """The folder of an action's artifacts, open as long as the `with` block.

    Missing folders are created. Folders are opened component by component, so that no symbolic link is followed.
    """

    def __init__(self, folder: Path, action: str) -> None:
        self.folder = folder
        self.action = action
        self.parts: tuple[bytes, ...] | None = None
        self.handle = -1

    def __enter__(self) -> ActionFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the folder that is open, if any."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1
        self.parts = None

    def open_subfolder(self, parts: tuple[bytes, ...]) -> int:
        """Return a descriptor of a folder below the action's folder. The next call closes the descriptor."""
        # Files of one folder usually follow each other, so the folder of the previous file stays open.
        if parts == self.parts:
            return self.handle
        self.close()
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

    def move_in(self, source: str, path: bytes) -> None:
        """Move the file `source` to `path` in the action's folder.

        Raises:
            UploadRefused: the file system does not accept the path, or a symbolic link or a folder is at the path.
        """
        *folders, name = checked_path(path)
        try:
            os.rename(source, name, dst_dir_fd=self.open_subfolder(tuple(folders)))
        except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
            raise UploadRefused(f"{path!r} cannot be stored: {error.strerror}") from error
        except OSError as error:
            if error.errno in NOT_A_NAME:
                raise UploadRefused(f"{path[:200]!r} cannot be stored: {error.strerror}") from error
            raise

    def remove(self, path: bytes) -> None:
        """Delete a file of an earlier upload, if it exists."""
        *folders, name = checked_path(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(name, dir_fd=self.open_subfolder(tuple(folders)))


class Upload:
    """One upload call, from its header until `finish` or `abandon`. Files arrive in a staging folder of the upload.

    The names of objects must begin with `object_names`.
    `start` is the file that is being received, None between two files. `complete`: the end of the upload has arrived.
    """

    def __init__(self, folder: Path, action: str, *, durable: bool, object_names: str = "") -> None:
        self.folder = folder
        self.action = action
        self.durable = durable
        self.object_names = object_names
        folder.mkdir(parents=True, exist_ok=True)
        self.staging = Path(tempfile.mkdtemp(prefix=".upload-", dir=folder))
        self.files: list[FileStored] = []
        self.paths: set[bytes] = set()
        self.complete = False
        self.began = time.monotonic()
        self.received_bytes = 0
        self.start: FileStart | None = None
        self.handle = -1
        self.digest = hashlib.sha256()
        self.file_bytes = 0
        self.uri, self.offset = "", 0

    def feed(self, parts: Iterable[FilePart | UploadEnd | None]) -> None:
        """Process the next parts of the upload in order. None is a part of an unknown kind and is ignored.

        Raises:
            UploadRefused: the parts break the contract.
        """
        for part in parts:
            if part is None:
                continue
            if self.complete:
                raise UploadRefused("a part follows the end of the upload")
            match part:
                case FileStart():
                    self.start_file(part)
                case FileData():
                    self.write_data(part.data)
                case StoredObject():
                    self.note_object(part)
                case FileEnd():
                    self.finish_file(part.sha256)
                case UploadEnd():
                    self.check_end(part)

    def start_file(self, start: FileStart) -> None:
        """Check the path of the next file and create the file in the staging folder."""
        if self.start is not None:
            raise UploadRefused(f"{self.start.path!r} has no file end")
        checked_path(start.path)
        if start.path in self.paths:
            raise UploadRefused(f"{start.path!r} is sent twice")
        if len(self.files) >= MAX_FILES:
            raise UploadRefused(f"more than {MAX_FILES} files")
        # The mode is that of the file in the pod without setuid, setgid and sticky bit. The kernel applies the umask.
        self.handle = os.open(self.staging_path(len(self.files)), NEW, start.mode & 0o777)
        self.start = start
        self.digest = hashlib.sha256()
        self.file_bytes = 0
        self.uri, self.offset = "", 0

    def transfer(self) -> Transfer:
        """Return the progress of the upload."""
        start = self.start
        path, size = (start.path, start.size) if start else (b"", 0)
        done, seconds = self.file_bytes if start else 0, time.monotonic() - self.began
        return Transfer(len(self.files), self.received_bytes, path, done, size, seconds)

    def staging_path(self, number: int) -> str:
        """Return the path of file number `number` of this upload in the staging folder."""
        return f"{self.staging}/{number}"

    def write_data(self, data: bytes) -> None:
        """Write the next bytes of the file that is being received."""
        if self.start is None:
            raise UploadRefused("data without a file start")
        self.file_bytes += len(data)
        self.received_bytes += len(data)
        if self.file_bytes > self.start.size:
            raise UploadRefused(f"{self.start.path!r} is longer than its {self.start.size} bytes")
        self.digest.update(data)
        write_all(self.handle, data)

    def note_object(self, part: StoredObject) -> None:
        """Keep the object of the file that is being received. The content of the file is in an object store."""
        uri = part.uri
        if self.start is None or self.file_bytes or self.uri or not 0 < len(uri) <= MAX_URI:
            raise UploadRefused("the name of an object without a file, or a name that is too long")
        if part.offset + self.start.size > MAX_OBJECT:
            raise UploadRefused(f"{self.start.path[:200]!r} ends after the largest possible object")
        if not uri.startswith(self.object_names):
            raise UploadRefused(f"{uri[:200]!r} is not the name of an object that this attempt has put")
        self.uri, self.offset = uri, part.offset

    def finish_file(self, sha256: bytes) -> None:
        """Check size and SHA-256 of the file that is being received, and close it."""
        start = self.start
        if start is None:
            raise UploadRefused("a file end without a file start")
        if self.uri:
            # No process has checked the hash, which the pod has computed. A pod that reads the object checks it.
            self.received_bytes += start.size
        elif self.file_bytes != start.size:
            raise UploadRefused(f"{start.path!r} has {self.file_bytes} bytes instead of {start.size}")
        elif self.digest.digest() != sha256:
            raise UploadRefused(f"the sha256 of {start.path!r} is wrong")
        os.close(self.handle)
        self.handle = -1
        self.start = None
        self.paths.add(start.path)
        self.files.append(FileStored(start.path, start.size, sha256, start.mode & 0o777, self.uri, self.offset))

    def check_end(self, end: UploadEnd) -> None:
        """Compare the number of files and bytes that the agent has sent with the received files."""
        if self.start is not None:
            raise UploadRefused(f"{self.start.path!r} has no file end")
        total = sum(each.size for each in self.files)
        if (end.files, end.bytes) != (len(self.files), total):
            raise UploadRefused(
                f"{len(self.files)} files of {total} bytes arrived, the agent sent {end.files} of {end.bytes}"
            )
        self.complete = True

    def finish(self, previous: Sequence[FileStored]) -> list[FileStored]:
        """Move the files into the action's folder and return them. Delete files of `previous` that were not sent again.

        Raises:
            UploadRefused: the end of the upload is missing, or a file cannot be stored under its path.
        """
        if not self.complete:
            raise UploadRefused("the end of the upload is missing")
        with ActionFolder(self.folder, self.action) as folder:
            names = {each.path for each in self.files if not each.uri}
            for old in previous:
                if old.path not in names:
                    folder.remove(old.path)
            for number, file in enumerate(self.files):
                if file.uri:
                    os.unlink(self.staging_path(number))
                else:
                    folder.move_in(self.staging_path(number), file.path)
        self.staging.rmdir()
        if self.durable:
            # One sync of the whole disk is enough. An fsync of each of thousands of small files would take minutes.
            os.sync()
        return self.files

    def abandon(self) -> None:
        """Delete the staging folder. Safe to call after `finish`."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1
        shutil.rmtree(self.staging, ignore_errors=True)
