"""Keep the cache on a volume that only container `helper` mounts. Part of the program `caches`.

The agent has no access to the volume. It names the files, and it signs and checks the entries, so the key stays with
the agent. A file is written under a temporary name and gets its name in one step, so a helper that is killed leaves at
most a temporary file. Other programs may be able to write to the volume, so no link is followed.
`packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from hashlib import sha256

from agent.cluster.in_pod.files.cache_archive import NEW_FILE, open_or_make, pack
from agent.cluster.in_pod.files.cache_hash import COPY_BYTES, PLAIN_FILE, CacheFault
from agent.cluster.in_pod.objects.downloads import Refused, write_whole
from agent.cluster.in_pod.objects.send_objects import StoreUnavailable
from agent.cluster.in_pod.workspace import FOLDER, open_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

ENTRY_BYTES = 4096  # maximum number of bytes of an entry
MAX_LISTED = 100_000  # maximum number of keys of a scope that are looked at for a prefix
USED_SECONDS = 86400  # an entry is marked as used at most once in this time
NAME_TRIES = 3  # number of tries for an entry whose folder `cache prune` may delete at the same time
LEFT_FOLDER = "tmp"  # folder of a scope for temporary files
# Errors of `link` on file systems without hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class HashedFile:
    """A file of which the size and the SHA-256 are known at its end, for `pack`."""

    def __init__(self, file: int) -> None:
        self.file, self.size, self.digest = file, 0, sha256()

    def write(self, data: bytes) -> int:
        try:
            write_whole(self.file, data)
        except OSError as error:
            raise StoreUnavailable(explain_volume(error)) from error
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Do nothing: `write` keeps nothing back."""


class Claim:
    """The volume, by its folder PATH. The names that the methods take are relative to it, and come from the agent."""

    def __init__(self, path: str) -> None:
        self.path = path

    @contextlib.contextmanager
    def folder(self, name: str, make: bool = False) -> Iterator[int]:
        """Open the folder NAME, and make it if asked."""
        try:
            root = os.open(self.path, FOLDER)
        except FileNotFoundError:
            raise OSError(errno.ENODEV, "") from None  # the pod does not mount the volume
        try:
            folder = open_or_make(root, name, lambda _: None) if make else open_folder(root, name)
        finally:
            os.close(root)
        try:
            yield folder
        finally:
            os.close(folder)

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        """Run one request of the agent about entries. `fault` names an error of the volume."""
        try:
            if "entry" in request:
                return {"text": self.read(request["entry"])}
            if "newest" in request:
                return {"key": self.newest(*request["newest"])}
            if "add" in request:
                return {"added": self.add(**request["add"])}
            self.drop(request["drop"])
            return {}
        except OSError as error:
            return {"fault": "store", "message": explain_volume(error)}

    # ---- entries

    def read(self, name: str) -> str | None:
        """Return the content of the entry NAME, None if there is none."""
        folder, _, file = name.rpartition("/")
        try:
            with self.folder(folder) as opened:
                entry = os.open(file, PLAIN_FILE, dir_fd=opened)
        except FileNotFoundError:
            return None
        try:
            return os.read(entry, ENTRY_BYTES).decode("utf-8", "replace")
        finally:
            os.close(entry)

    def newest(self, name: str, prefix: str, version: str) -> str:
        """Return the key of the newest entry in the folder NAME whose key begins with PREFIX, "" if there is none."""
        newest = (-1, "")
        try:
            with self.folder(name) as folder, os.scandir(folder) as listing:
                for _, each in zip(range(MAX_LISTED), listing):  # noqa: B905 - new in Python 3.10
                    if each.name.startswith(prefix):
                        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                            facts = os.stat(f"{each.name}/{version}", dir_fd=folder, follow_symlinks=False)
                            newest = max(newest, (facts.st_mtime_ns, each.name))
        except FileNotFoundError:
            return ""
        return newest[1]

    def add(self, scope: str, name: str, text: str) -> bool:
        """Write the entry NAME of the folder SCOPE. Return False if there is an entry already."""
        with self.temporary(scope) as (folder, left, file):
            write_whole(file, text.encode())
            os.fsync(file)
            return self.give_name(folder, left, name)

    def give_name(self, folder: int, left: str, name: str) -> bool:
        """Give the temporary file LEFT the name of an entry. Return False if there is an entry already."""
        parent, _, entry = name.rpartition("/")
        for attempt in range(NAME_TRIES):
            with self.folder(parent, make=True) as target:
                try:
                    os.link(left, entry, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
                except FileExistsError:
                    return False
                except FileNotFoundError:
                    if attempt == NAME_TRIES - 1:
                        raise
                    continue
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    # Without links, the last of two writers at the same time wins. Each entry is whole.
                    if entry in os.listdir(target):
                        return False
                    os.rename(left, entry, src_dir_fd=folder, dst_dir_fd=target)
                return True
        raise AssertionError("unreachable")

    def drop(self, name: str) -> None:
        """Delete an entry that cannot be used."""
        folder, _, file = name.rpartition("/")
        with contextlib.suppress(FileNotFoundError), self.folder(folder) as opened:
            os.unlink(file, dir_fd=opened)

    def mark_used(self, name: str) -> None:
        """Mark the entry NAME as used now, by the time of its folder. The volume may be read-only."""
        with contextlib.suppress(OSError), self.folder(name.rpartition("/")[0]) as folder:
            if time.time() - os.fstat(folder).st_mtime > USED_SECONDS:
                os.utime(folder)

    # ---- archives

    def copy(self, name: str, size: int, file: int) -> str:
        """Copy the archive NAME into FILE, and return its SHA-256.

        Raises:
            Refused: there is no such archive, it has another size, or the volume does not work.
        """
        folder, _, own = name.rpartition("/")
        try:
            with self.folder(folder) as opened:
                source = os.open(own, PLAIN_FILE, dir_fd=opened)
        except FileNotFoundError:
            raise Refused("missing", "the archive is no longer in the volume of caches") from None
        except OSError as error:
            raise Refused("store", explain_volume(error)) from error
        digest, left = sha256(), size
        try:
            while data := read_volume(source):
                left -= len(data)
                if left < 0:
                    break
                digest.update(data)
                write_whole(file, data)
        finally:
            os.close(source)
        if left:
            raise Refused("digest", "the archive has another size than its entry")
        return digest.hexdigest()

    def pack(self, scope: str, workspace: str, paths: list[str], limit: int) -> dict[str, object]:
        """Write PATHS of WORKSPACE as an archive of the folder SCOPE. Return its SHA-256 and size.

        Raises:
            CacheFault: the paths cannot be packed, or do not exist.
            StoreUnavailable: the volume does not work.
        """
        try:
            with self.temporary(scope) as (folder, left, opened):
                file = HashedFile(opened)
                pack_into(file, workspace, paths, limit)
                os.fsync(opened)
                with self.folder(f"{scope}/blob", make=True) as target:
                    # An archive of this name has this content, unless it is broken.
                    os.replace(left, file.digest.hexdigest(), src_dir_fd=folder, dst_dir_fd=target)
            return {"sha256": file.digest.hexdigest(), "size": file.size}
        except OSError as error:
            raise StoreUnavailable(explain_volume(error)) from error

    @contextlib.contextmanager
    def temporary(self, scope: str) -> Iterator[tuple[int, str, int]]:
        """Open a new file. Yield its folder, its name and the file. It is deleted unless it got another name."""
        name = os.urandom(8).hex()
        with self.folder(f"{scope}/{LEFT_FOLDER}", make=True) as folder:
            file = os.open(name, NEW_FILE, 0o660, dir_fd=folder)
            try:
                yield folder, name, file
            finally:
                os.close(file)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)


def explain_volume(error: OSError) -> str:
    return f"the volume of caches: {os.strerror(error.errno or 0)}"


def pack_into(file: HashedFile, workspace: str, paths: list[str], limit: int) -> None:
    """Pack PATHS of WORKSPACE into FILE. An error of the workspace becomes a CacheFault."""
    opened: BinaryIO = file  # type: ignore[assignment]
    try:
        pack(workspace, paths, opened, limit)
    except OSError as error:
        raise CacheFault(str(error)) from error


def read_volume(file: int) -> bytes:
    """Return the next bytes of FILE, b"" at its end."""
    try:
        return os.read(file, COPY_BYTES)
    except OSError as error:
        raise Refused("store", explain_volume(error)) from error
