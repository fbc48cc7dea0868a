"""Pack the paths of a cache into an archive, and unpack an archive into the workspace. Part of the program `caches`.

An archive is a tar with gzip. Its members are folders, regular files, and symbolic links that stay in the workspace.
The content of the workspace is not trusted, so no link is followed. An archive that `unpack` refuses leaves the
workspace as it was: all members go into a temporary folder first, and each path of the cache gets its name by one
rename.
`packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import stat
import tarfile

from agent.cluster.in_pod.files.cache_hash import COPY_BYTES, PLAIN_FILE, CacheFault
from agent.cluster.in_pod.workspace import FOLDER, open_folder, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

MAX_MEMBERS = 200_000  # maximum number of files, folders and links of one archive
COMPRESSION = 1  # the fastest of gzip: files of caches are often compressed already
EXPANSION = 20  # the files may have at most this many times the bytes of the largest archive
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NothingToPack(CacheFault):
    """No path of the cache exists."""


def leaves_workspace(path: str, target: str) -> bool:
    """Return whether the symbolic link PATH with this TARGET leads out of the workspace."""
    place = os.path.normpath(os.path.join(os.path.dirname(path), target))
    return target.startswith("/") or place == ".." or place.startswith("../")


def forget_members(archive: tarfile.TarFile) -> None:
    """Drop the list of members that `tarfile` keeps for random access, so that memory stays small."""
    archive.members.clear()  # type: ignore[attr-defined]


# ---- packing


class LimitedFile:
    """A file of at most LIMIT bytes, for `gzip`."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.left, self.limit = file, limit, limit

    def write(self, data: bytes) -> int:
        self.left -= len(data)
        if self.left < 0:
            raise CacheFault(f"the archive has more than {self.limit} bytes")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


class Packer:
    """Writes the paths of one cache into an archive. Lives as long as `pack`."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self.archive = archive
        self.members: set[str] = set()

    def add_path(self, root: int, path: str) -> None:
        """Add the file, the link or the folder PATH of the workspace ROOT, if it exists."""
        parent, _, name = path.rpartition("/")
        try:
            folder = open_folder(root, parent)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise CacheFault(f"{parent} cannot be read: {os.strerror(error.errno or 0)}") from error
        try:
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                self.add_folder(folder, name, path)
            else:
                self.add(path, name, folder, facts)
        except FileNotFoundError:
            return
        finally:
            os.close(folder)

    def add_folder(self, parent: int, name: str, path: str) -> None:
        """Add the folder NAME in PARENT with all in it."""
        top = os.open(name, FOLDER, dir_fd=parent)

        def enter(below: str, _: str) -> bool:
            self.add_member(f"{path}/{below}", os.stat(below, dir_fd=top, follow_symlinks=False), tarfile.DIRTYPE)
            return True

        def miss(below: str, why: str) -> None:
            raise CacheFault(f"{path}/{below} cannot be read: {why}")

        try:
            self.add_member(path, os.fstat(top), tarfile.DIRTYPE)
            for below, own, folder, facts in walk(top, enter, miss):
                self.add(f"{path}/{below}", own, folder, facts)
        finally:
            os.close(top)

    def add(self, path: str, name: str, folder: int, facts: os.stat_result) -> None:
        """Add a regular file or a link. Sockets, named pipes and devices are left out."""
        if stat.S_ISLNK(facts.st_mode):
            target = os.readlink(name, dir_fd=folder)
            if leaves_workspace(path, target):
                raise CacheFault(f"{path} is a link to {target}, outside the workspace")
            self.add_member(path, facts, tarfile.SYMTYPE, target)
        elif stat.S_ISREG(facts.st_mode):
            file = os.open(name, PLAIN_FILE, dir_fd=folder)
            with open(file, "rb") as opened:
                self.add_member(path, os.fstat(file), tarfile.REGTYPE, "", opened)

    def add_member(
        self, path: str, facts: os.stat_result, kind: bytes, target: str = "", content: BinaryIO | None = None
    ) -> None:
        if path in self.members:
            return
        self.members.add(path)
        if len(self.members) > MAX_MEMBERS:
            raise CacheFault(f"the cache has more than {MAX_MEMBERS} files")
        member = tarfile.TarInfo(path)
        member.type, member.linkname, member.mode = kind, target, facts.st_mode & 0o777
        member.mtime = int(facts.st_mtime)
        member.size = facts.st_size if content is not None else 0
        self.archive.addfile(member, content)
        forget_members(self.archive)


def pack(workspace: str, paths: list[str], file: BinaryIO, limit: int) -> None:
    """Write PATHS of WORKSPACE as an archive into FILE.

    Raises:
        NothingToPack: no path exists.
        CacheFault: the archive would have more than LIMIT bytes, or a path cannot be packed.
    """
    root = os.open(workspace, FOLDER)
    try:
        with (
            gzip.GzipFile("", "wb", COMPRESSION, LimitedFile(file, limit), 0) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as archive,
        ):
            packer = Packer(archive)
            for path in paths:
                packer.add_path(root, path)
    finally:
        os.close(root)
    if not packer.members:
        raise NothingToPack("no path exists")


# ---- unpacking


class Unpacker:
    """Writes the members of one archive into the temporary folder ROOT. Lives as long as `unpack`.

    PATHS are those of the cache: nothing else may be in the archive. USER gets all files.
    """

    def __init__(self, root: int, paths: list[str], user: tuple[int, int] | None, limit: int) -> None:
        self.root, self.paths, self.user, self.left = root, paths, user, limit
        self.links: list[tarfile.TarInfo] = []
        self.folders: list[tuple[str, int, int]] = []  # path, mode and time of each folder
        self.members = 0

    def run(self, archive: tarfile.TarFile) -> None:
        """Write all members. Links come last, so that no file is written through a link."""
        while (member := archive.next()) is not None:
            forget_members(archive)
            self.check(member)
            if member.isdir():
                os.close(self.open_folders(member.name))
                self.folders.append((member.name, member.mode & 0o777, int(member.mtime)))
            elif member.issym():
                self.links.append(member)
            else:
                self.write_file(archive, member)
        for member in self.links:
            self.write_link(member)
        for path, mode, mtime in reversed(self.folders):
            folder = open_folder(self.root, path)
            os.fchmod(folder, mode)
            os.utime(folder, (mtime, mtime))
            os.close(folder)

    def check(self, member: tarfile.TarInfo) -> None:
        """Refuse a member that is no file, folder or link below the paths of the cache."""
        name = member.name
        self.members += 1
        self.left -= member.size
        if self.left < 0 or self.members > MAX_MEMBERS:
            raise CacheFault("the archive has too many files or bytes")
        if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
            raise CacheFault(f"the archive has the path {name!r}")
        if not any(name == path or name.startswith(path + "/") for path in self.paths):
            raise CacheFault(f"the archive has {name!r}, which is no path of the cache")
        if member.issym():
            if leaves_workspace(name, member.linkname):
                raise CacheFault(f"the archive has the link {name!r}, which leaves the workspace")
        elif not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
            raise CacheFault(f"the archive has {name!r}, which is no file, folder or link")

    def write_file(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parent, _, name = member.name.rpartition("/")
        source, folder = archive.extractfile(member), self.open_folders(parent)
        try:
            file = os.open(name, NEW_FILE, 0o600, dir_fd=folder)
            with open(file, "wb") as opened:
                while source and (data := source.read(COPY_BYTES)):
                    opened.write(data)
                opened.flush()
                self.give(file)
                # After the change of the owner, which clears some bits of the mode.
                os.fchmod(file, member.mode & 0o777)
                os.utime(file, (member.mtime, member.mtime))
        finally:
            os.close(folder)

    def write_link(self, member: tarfile.TarInfo) -> None:
        parent, _, name = member.name.rpartition("/")
        folder = self.open_folders(parent)
        try:
            os.symlink(member.linkname, name, dir_fd=folder)
            if self.user is not None and os.geteuid() == 0:
                os.chown(name, *self.user, dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)

    def open_folders(self, path: str) -> int:
        return open_or_make(self.root, path, self.give)

    def give(self, file: int) -> None:
        """Make the user of the commands the owner of FILE."""
        if self.user is not None and os.geteuid() == 0:
            os.fchown(file, *self.user)


def open_or_make(root: int, path: str, give) -> int:  # type: ignore[no-untyped-def]
    """Open the folder PATH below ROOT without following links, and make what is missing. GIVE gets each new folder."""
    folder = os.dup(root)
    for name in path.split("/") if path else ():
        try:
            made = True
            try:
                os.mkdir(name, 0o755, dir_fd=folder)
            except FileExistsError:
                made = False
            below = os.open(name, FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        if made:
            give(below)
        folder = below
    return folder


def unpack(
    file: BinaryIO, workspace: str, temporary: str, paths: list[str], user: tuple[int, int] | None, limit: int
) -> list[str]:
    """Unpack the archive FILE into WORKSPACE. Return the texts about PATHS that were left alone.

    TEMPORARY is a new folder in WORKSPACE. LIMIT is the largest number of bytes of an archive.

    Raises:
        CacheFault: the archive is refused. WORKSPACE is as it was.
    """
    os.mkdir(temporary, 0o700)
    root, inside = os.open(workspace, FOLDER), os.open(temporary, FOLDER)
    unpacker = Unpacker(inside, paths, user, limit * EXPANSION)
    try:
        try:
            with tarfile.open(fileobj=file, mode="r|gz") as archive:
                unpacker.run(archive)
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, ValueError) as error:
            raise CacheFault(f"the archive cannot be read: {error}") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise  # the archive is not the cause
            raise CacheFault(f"the archive cannot be unpacked: {os.strerror(error.errno or 0)}") from error
        return [text for path in paths if (text := move(inside, root, path, unpacker.give))]
    finally:
        os.close(inside)
        os.close(root)


def move(inside: int, root: int, path: str, give) -> str:  # type: ignore[no-untyped-def]
    """Move PATH from the folder INSIDE to the workspace ROOT. Return why it was left alone, "" if it was moved."""
    parent, _, name = path.rpartition("/")
    try:
        source = open_folder(inside, parent)
    except FileNotFoundError:
        return ""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(name, dir_fd=source, follow_symlinks=False)
            try:
                folder = open_or_make(root, parent, give)
            except OSError as error:
                return f"{path} was not restored: {parent} is no folder ({os.strerror(error.errno or 0)})"
            try:
                os.stat(name, dir_fd=folder, follow_symlinks=False)
                return f"{path} was not restored: it exists already"
            except FileNotFoundError:
                os.rename(name, name, src_dir_fd=source, dst_dir_fd=folder)
            finally:
                os.close(folder)
        return ""
    finally:
        os.close(source)
