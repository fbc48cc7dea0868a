"""Write a tar of the wanted files to stdout, without `tarfile`, whose import costs 8 ms.

This program runs inside container `helper`, as the command of one exec. The exec has the program's source as an
argument. The archive holds regular files only, then a manifest (JSON lines) as a member of a type of its own, then the
end marker. An archive without manifest or end marker was cut off.

A hard link is sent as a separate file. No hard link can lead out of the workspace, because links do not cross mounts.
Empty folders and symbolic links are not sent.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from hashlib import sha256

from agent.cluster.in_pod.workspace import FOLDER, MAX_NAME, TOO_LONG, fingerprint, walk
from agent.glob import compile_folders, compile_globs

TYPE_CHECKING = False
if TYPE_CHECKING:
    LeftOut = list[tuple[str, str]]

MANIFEST_TYPE = b"Z"  # tar type of the manifest; no file of the workspace gets this type, whatever its name
DEFAULT_EXCLUDES = frozenset(
    {
        *(".git", ".hg", ".svn", ".cache", ".npm", ".yarn", ".pnpm-store", "node_modules", ".gradle", ".m2", ".cargo"),
        *(".venv", "venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox"),
    }
)
# O_NONBLOCK: a file that has become a named pipe must not block the open.
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
BATCH = 256 * 1024  # number of bytes of one read, and of one write of small pieces
MAX_LISTED = 100  # maximum number of left-out files that the manifest names; it only counts the others
MAX_OCTAL = 0o77777777777  # the largest number that a ustar header can hold
FLUSH_SECONDS = 5.0  # seconds between two writes of small pieces: the agent takes a long silence for a broken copy
ALARM_SECONDS = 60  # seconds after the time limit until the program kills itself, if no client reads its output
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class DeclaredFileMissing(Exception):
    """A file that the action declares as an artifact is over a limit or cannot be read. The whole collection fails."""


def header(name: bytes, mode: int, size: int, mtime: int, kind: bytes = b"0") -> bytes:
    """Return the 512 bytes of a ustar header. A name or size that is too long for its field is cut."""
    numbers = b"%07o\0" % mode + b"0000000\0" * 2 + b"%011o\0%011o\0" % (size & MAX_OCTAL, mtime)
    start = name[:100].ljust(100, b"\0") + numbers
    rest = kind + bytes(100) + b"ustar\x0000" + bytes(247)
    return start + b"%06o\0 " % (sum(start) + sum(rest) + 8 * 32) + rest


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return one record of a pax header: its length (which includes the digits of the length), key and value."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while length != len(body) + len(str(length)):
        length += 1
    return b"%d" % length + body


def pad_to_block(data: bytes) -> bytes:
    """Return DATA with zeros up to a multiple of the tar block size."""
    return data + bytes(-len(data) % 512)


def to_json(text: str) -> str:
    """Return the same text as `json.dumps`. Importing `json` costs 6 ms, and most paths do not need it."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return '"' + text + '"'
    import json

    return json.dumps(text)


def manifest_line(*values: str | int) -> str:
    """Return one line of the manifest: a JSON array with a final newline."""
    return "[" + ", ".join([to_json(value) if isinstance(value, str) else str(value) for value in values]) + "]\n"


def shorten(path: str) -> str:
    """Return PATH as the manifest names it: cut if it is too long, because the manifest limits the length of a line."""
    return path if len(os.fsencode(path)) <= MAX_NAME else path[:200] + "..."


class Output:
    """Buffers standard output, because each write costs a message of the exec. The `Collector` owns it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.pieces: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> None:
        """Write DATA now if it is large, otherwise together with later data."""
        if len(data) > BATCH // 8:
            self.flush()
            self.write_all(data)
            return
        self.pieces.append(data)
        self.size += len(data)
        if self.size >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Write all buffered data."""
        self.write_all(b"".join(self.pieces))
        self.pieces, self.size = [], 0

    def write_all(self, data: bytes) -> None:
        """Write DATA to the descriptor. `agent.domain.paths` has the same function for the agent."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fd, rest) :]


class Collector:
    """Sends the wanted files of one walk over the workspace, as far as the limits allow.

    `main` creates one `Collector`. LIMITS are the number of files, the bytes of one file, the bytes of all files, and
    the seconds. Without PATHS the default set is collected: files that are not in OLD, the fingerprints of the
    snapshot. With PATHS the files are "declared", and a file over a limit ends the collection.
    """

    def __init__(self, out: Output, limits: list[int], paths: list[str], exclude: list[str], old: set[bytes]) -> None:
        self.out = out
        self.max_files, self.max_file_bytes, self.max_bytes, self.seconds = limits
        self.end = time.monotonic() + self.seconds
        self.flush_at = time.monotonic() + FLUSH_SECONDS
        self.paths, self.folders = paths, [compile_folders(path) for path in paths]
        self.globs, self.exclude = compile_globs(paths), compile_globs(exclude)
        self.old = old
        self.unmatched = set(range(len(paths)))
        self.links: dict[int, str] = {}  # by index of a declared path: the first symbolic link on the way to a match
        self.files = self.bytes = self.left_out_count = 0
        self.sent: list[str] = []
        self.changed: list[str] = []
        self.left_out: LeftOut = []
        self.left_out_by_default: LeftOut = []

    def run(self, workspace: str) -> None:
        """Write the files, the manifest and the end marker of the archive."""
        root = os.open(workspace, FOLDER)
        exceeded = None
        try:
            for path, name, folder, facts in walk(root, self.enter, self.leave_out):
                if self.is_late(path):
                    break
                if self.is_wanted(path, facts):
                    self.send_or_leave_out(path, name, folder, facts)
        except DeclaredFileMissing as error:
            exceeded = error.args
        self.send_manifest(exceeded)
        self.out.flush()

    def enter(self, path: str, name: str) -> bool:
        """Return whether the folder PATH can hold a wanted file."""
        names = path.split("/")
        if self.is_late(path) or any(glob.matches(names) for glob in self.exclude):
            return False
        if self.paths:
            return any(self.leads_to(index, names) for index in range(len(self.paths)))
        if name in DEFAULT_EXCLUDES:
            self.leave_out(path, "excluded by default", self.left_out_by_default)
            return False
        return True

    def leads_to(self, index: int, names: list[str]) -> bool:
        """Return whether the path NAMES can be a folder on the way to a file of the declared path with this INDEX."""
        return all(
            glob.matches([name])
            for glob, name in zip(self.folders[index], names)  # noqa: B905 - new in Python 3.10
        )

    def is_late(self, path: str) -> bool:
        """Return whether the time limit has passed. If so, PATH and all later files are left out."""
        now = time.monotonic()
        if now > self.flush_at:
            self.flush_at = now + FLUSH_SECONDS
            self.out.flush()
        if now <= self.end:
            return False
        self.exceed(path, f"not reached within the limit of {self.seconds} s")
        return True

    def is_wanted(self, path: str, facts: os.stat_result) -> bool:
        """Return whether to send PATH: it matches one of PATHS or, without PATHS, has changed since the snapshot."""
        names = path.split("/")
        if any(glob.matches(names) for glob in self.exclude):
            return False
        if not self.paths:
            return fingerprint(path, facts) not in self.old
        hits = [index for index, glob in enumerate(self.globs) if glob.matches(names)]
        if stat.S_ISREG(facts.st_mode):
            self.unmatched.difference_update(hits)
        elif stat.S_ISLNK(facts.st_mode):
            for index in self.unmatched - self.links.keys():
                if self.leads_to(index, names):
                    self.links[index] = path
        return bool(hits)

    def leave_out(self, path: str, why: str, where: LeftOut | None = None) -> None:
        """Record in the list WHERE that PATH is not sent, for the reason WHY."""
        where = self.left_out if where is None else where
        self.left_out_count += 1
        if len(where) < MAX_LISTED:
            where.append((shorten(path), why))

    def exceed(self, path: str, why: str) -> None:
        """Handle a PATH over a limit, which WHY describes: fail if the action declares paths, else leave PATH out."""
        if self.paths:
            raise DeclaredFileMissing(shorten(path), why)
        self.leave_out(path, why)

    def send_or_leave_out(self, path: str, name: str, folder: int, facts: os.stat_result) -> None:
        """Send PATH if it is a regular file within the limits, otherwise leave it out."""
        if not stat.S_ISREG(facts.st_mode):
            return self.leave_out(path, KINDS.get(stat.S_IFMT(facts.st_mode), "not a regular file"))
        if len(os.fsencode(path)) > MAX_NAME:
            return self.leave_out(path, TOO_LONG)
        try:
            file = os.open(name, FILE, dir_fd=folder)
        except OSError as error:
            return self.exceed(path, "unreadable: " + os.strerror(error.errno or 0))
        try:
            # The commands may have replaced the file after the walk looked at it.
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode):
                self.leave_out(path, "replaced while it was opened")
            elif self.files >= self.max_files:
                self.exceed(path, f"over the limit of {self.max_files} files")
            elif facts.st_size > self.max_file_bytes:
                self.exceed(path, f"{facts.st_size} bytes, over the limit of {self.max_file_bytes} for a file")
            elif self.bytes + facts.st_size > self.max_bytes:
                self.exceed(path, f"over the limit of {self.max_bytes} bytes in all")
            else:
                self.send_file(path, file, facts)
        finally:
            os.close(file)

    def send_file(self, path: str, file: int, facts: os.stat_result) -> None:
        """Send as many bytes as the size in FACTS. The manifest names the file if it has changed meanwhile."""
        mode, size = facts.st_mode & 0o777, facts.st_size
        self.send_header(os.fsencode(path), mode, size, int(facts.st_mtime))
        digest = sha256()
        left = size
        while left:
            # A file that has become shorter is filled up with zeros, because its header is already sent.
            data = os.read(file, min(left, BATCH)) or bytes(min(left, BATCH))
            digest.update(data)
            self.out.write(data)
            left -= len(data)
        self.out.write(bytes(-size % 512))
        now = os.fstat(file)
        if (now.st_size, now.st_mtime_ns, now.st_ctime_ns) != (size, facts.st_mtime_ns, facts.st_ctime_ns):
            self.changed.append(path)
        self.files += 1
        self.bytes += size
        self.sent.append(manifest_line("file", path, size, mode, digest.hexdigest()))

    def send_header(self, name: bytes, mode: int, size: int, mtime: int) -> None:
        """Send the header of a file, and before it a pax header if name or size do not fit."""
        more = pax_record(b"path", name) if len(name) > 100 else b""
        more += pax_record(b"size", b"%d" % size) if size > MAX_OCTAL else b""
        if more:
            self.out.write(header(b"pax", 0o644, len(more), 0, b"x") + pad_to_block(more))
        self.out.write(header(name, mode, size, min(max(mtime, 0), MAX_OCTAL)))

    def send_manifest(self, exceeded: tuple[str, str] | None) -> None:
        """Send the manifest (the sent files, the left-out files, and the totals) and the end marker."""
        changed = [manifest_line("changed", path) for path in self.changed[:MAX_LISTED]]
        text = "".join([*self.sent, *changed, *self.manifest_end(exceeded)]).encode("ascii")
        self.out.write(header(b"sealci-manifest", 0o644, len(text), 0, MANIFEST_TYPE) + pad_to_block(text))
        self.out.write(bytes(1024))

    def manifest_end(self, exceeded: tuple[str, str] | None) -> list[str]:
        """Return the lines of the manifest that follow the sent files."""
        lines = [manifest_line("left", *each) for each in (self.left_out + self.left_out_by_default)[:MAX_LISTED]]
        for index in sorted(self.unmatched):
            lines.append(manifest_line("unmatched", self.paths[index]))
            if index in self.links:
                lines.append(manifest_line("link", shorten(self.links[index])))
        if exceeded:
            lines.append(manifest_line("exceeded", *exceeded))
        return [*lines, manifest_line("end", self.files, self.bytes, self.left_out_count)]


def old_files(paths: list[str], snapshot: str) -> set[bytes]:
    """Return the entries of the file SNAPSHOT. They only count without PATHS, when new files are collected."""
    if paths:
        return set()
    with open(snapshot, "rb") as file:
        return set(file.read().split(b"\0"))


def main(arguments: list[str]) -> None:
    """Run with the arguments WORKSPACE SNAPSHOT, LIMITS (see `Collector`), NUMBER of paths, the paths, the excludes."""
    workspace, snapshot, *numbers = arguments[:7]
    *limits, number = [int(limit) for limit in numbers]
    # If the client of an exec disconnects, the kernel does not end the command, and the command's next write blocks for
    # ever.
    signal.alarm(limits[3] + ALARM_SECONDS)
    paths, exclude = arguments[7 : 7 + number], arguments[7 + number :]
    Collector(Output(1), limits, paths, exclude, old_files(paths, snapshot)).run(workspace)
