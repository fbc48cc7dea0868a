"""The program that streams files out of container `files`: walk the workspace, hash, write a tar to stdout.

Like `workspace` it runs inside the container; its source is the argument of the exec that runs it, and it lives for
that exec. After the files, which are regular ones only, comes a manifest (JSON lines) as a last member of a type of its
own, then the end of the archive: what lacks either was cut. A hard link is sent as a file of its own; one to the
outside cannot exist, for links do not cross mounts. Empty folders and links are not sent.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from hashlib import sha256

from agent.cluster.in_pod.glob import compiled, first_folders
from agent.cluster.in_pod.workspace import FOLDER, trace, walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    LeftOut = list[tuple[str, str]]

MANIFEST_TYPE = b"Z"  # a type the commands cannot give to a file, whatever they call it
DEFAULT_EXCLUDES = frozenset(
    {
        *(".git", ".hg", ".svn", ".cache", ".npm", ".yarn", ".pnpm-store", "node_modules", ".gradle", ".m2", ".cargo"),
        *(".venv", "venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", ".tox", ".nox"),
    }
)
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
BATCH = 256 * 1024
NAMED = 100  # so many left-out files are named, the others counted
MAX_NAME = 4096
PATIENCE = 60  # seconds beyond the limit, until a collector that nobody reads ends itself
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class DeclaredFileMissing(Exception):
    """A declared file is over a limit or cannot be read: nothing more is worth sending."""


def header(name: bytes, mode: int, size: int, mtime: int, kind: bytes = b"0") -> bytes:
    """Return the 512 bytes of a ustar header; what does not fit is cut, and said by a pax header before it."""
    numbers = b"%07o\0" % mode + b"0000000\0" * 2 + b"%011o\0%011o\0" % (size & 0o77777777777, mtime)
    start = name[:100].ljust(100, b"\0") + numbers
    rest = kind + bytes(100) + b"ustar\x0000" + bytes(247)
    return start + b"%06o\0 " % (sum(start) + sum(rest) + 8 * 32) + rest


def pax_record(key: bytes, value: bytes) -> bytes:
    """Return one record of an extended header: its length, which counts itself, the key and the value."""
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while length != len(body) + len(str(length)):
        length += 1
    return b"%d" % length + body


def pad_to_block(data: bytes) -> bytes:
    """Fill DATA up to whole blocks of the archive."""
    return data + bytes(-len(data) % 512)


def quoted(text: str) -> str:
    """Return TEXT as JSON, byte for byte as `json.dumps` does, whose import costs 6 ms that are seldom needed."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return '"' + text + '"'
    import json

    return json.dumps(text)


def manifest_line(*values: str | int) -> str:
    """Return one line of the manifest."""
    return "[" + ", ".join([quoted(value) if isinstance(value, str) else str(value) for value in values]) + "]\n"


class Output:
    """Standard output in large writes: each one costs a frame of the exec's stream."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting: list[bytes] = []
        self.size = 0

    def write(self, data: bytes) -> None:
        """Send DATA, now or with what follows."""
        if len(data) > BATCH // 8:
            self.flush()
            self.push(data)
            return
        self.waiting.append(data)
        self.size += len(data)
        if self.size >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Send all that waits."""
        self.push(b"".join(self.waiting))
        self.waiting, self.size = [], 0

    def push(self, data: bytes) -> None:
        """Send DATA before this returns."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.fd, rest) :]


class Collection:
    """One walk over the workspace. A file is sent when `wanted` says so and no limit stands against it."""

    def __init__(self, out: Output, limits: list[int], paths: list[str], exclude: list[str], old: set[bytes]) -> None:
        self.out = out
        self.max_files, self.max_file_bytes, self.max_bytes, self.seconds = limits
        self.end = time.monotonic() + self.seconds
        self.paths, self.ways = paths, [first_folders(path) for path in paths]
        self.patterns, self.exclude = compiled(paths), compiled(exclude)
        self.old = old
        self.unmatched = set(range(len(paths)))
        self.files = self.bytes = self.missed = 0
        self.sent: list[str] = []
        self.changed: list[str] = []
        self.left: LeftOut = []
        self.left_by_default: LeftOut = []

    def run(self, workspace: str) -> None:
        """Send the files, the manifest and the end of the archive."""
        root = os.open(workspace, FOLDER)
        exceeded = None
        try:
            for path, name, folder, facts in walk(root, self.enter, self.miss):
                if self.late(path):
                    break
                if self.wanted(path, facts):
                    self.consider(path, name, folder, facts)
        except DeclaredFileMissing as error:
            exceeded = error.args
        self.manifest(exceeded)
        self.out.write(bytes(1024))
        self.out.flush()

    def enter(self, path: str, name: str) -> bool:
        """Say if anything in the folder PATH can be wanted."""
        if self.late(path) or any(pattern.fullmatch(path) for pattern in self.exclude):
            return False
        if self.paths:
            parts = path.split("/")
            return any(
                all(one.fullmatch(parts[depth]) for depth, one in enumerate(way[: len(parts)])) for way in self.ways
            )
        if name in DEFAULT_EXCLUDES:
            self.miss(path, "excluded by default", self.left_by_default)
            return False
        return True

    def late(self, path: str) -> bool:
        """Say if the time is over, which leaves out PATH and all that follows."""
        if time.monotonic() <= self.end:
            return False
        self.over(path, f"not reached within the limit of {self.seconds} s")
        return True

    def wanted(self, path: str, facts: os.stat_result) -> bool:
        """Say if PATH belongs to the files that were asked for."""
        if any(pattern.fullmatch(path) for pattern in self.exclude):
            return False
        if not self.paths:
            return trace(path, facts) not in self.old
        hits = [index for index, pattern in enumerate(self.patterns) if pattern.fullmatch(path)]
        if stat.S_ISREG(facts.st_mode):
            self.unmatched.difference_update(hits)
        return bool(hits)

    def miss(self, path: str, why: str, where: LeftOut | None = None) -> None:
        """Note that PATH is not sent."""
        where = self.left if where is None else where
        self.missed += 1
        if len(where) < NAMED:
            where.append((path, why))

    def over(self, path: str, why: str) -> None:
        """Leave PATH out of the default set, or end a declared one."""
        if self.paths:
            raise DeclaredFileMissing(path, why)
        self.miss(path, why)

    def consider(self, path: str, name: str, folder: int, facts: os.stat_result) -> None:
        """Send PATH, or say why not."""
        if not stat.S_ISREG(facts.st_mode):
            return self.miss(path, KINDS.get(stat.S_IFMT(facts.st_mode), "not a regular file"))
        if len(os.fsencode(path)) > MAX_NAME:
            return self.miss(path[:200] + "...", f"a path longer than {MAX_NAME} bytes")
        try:
            file = os.open(name, FILE, dir_fd=folder)
        except OSError as error:
            return self.over(path, "unreadable: " + os.strerror(error.errno or 0))
        try:
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode):
                self.miss(path, "replaced while it was opened")
            elif self.files >= self.max_files:
                self.over(path, f"over the limit of {self.max_files} files")
            elif facts.st_size > self.max_file_bytes:
                self.over(path, f"{facts.st_size} bytes, over the limit of {self.max_file_bytes} for a file")
            elif self.bytes + facts.st_size > self.max_bytes:
                self.over(path, f"over the limit of {self.max_bytes} bytes in all")
            else:
                self.send(path, file, facts)
        finally:
            os.close(file)

    def send(self, path: str, file: int, facts: os.stat_result) -> None:
        """Send exactly as many bytes as FACTS promise; a file that moves meanwhile is named in the manifest."""
        mode, size = facts.st_mode & 0o777, facts.st_size
        self.head(os.fsencode(path), mode, size, int(facts.st_mtime))
        digest = sha256()
        left = size
        while left:
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

    def head(self, name: bytes, mode: int, size: int, mtime: int) -> None:
        """Send the header of a file, with a pax header before it where name or size do not fit."""
        more = pax_record(b"path", name) if len(name) > 100 else b""
        more += pax_record(b"size", b"%d" % size) if size > 0o77777777777 else b""
        if more:
            self.out.write(header(b"pax", 0o644, len(more), 0, b"x") + pad_to_block(more))
        self.out.write(header(name, mode, size, min(max(mtime, 0), 0o77777777777)))

    def manifest(self, exceeded: tuple[str, str] | None) -> None:
        """Send what was sent, what was not, and the sums of both."""
        lines = self.sent
        lines += [manifest_line("changed", path) for path in self.changed[:NAMED]]
        lines += [manifest_line("left", *one) for one in (self.left + self.left_by_default)[:NAMED]]
        lines += [manifest_line("unmatched", self.paths[index]) for index in sorted(self.unmatched)]
        if exceeded:
            lines.append(manifest_line("exceeded", *exceeded))
        lines.append(manifest_line("end", self.files, self.bytes, self.missed))
        text = "".join(lines).encode("ascii")
        self.out.write(header(b"sealci-manifest", 0o644, len(text), 0, MANIFEST_TYPE) + pad_to_block(text))


def main(arguments: list[str]) -> None:
    """Take WORKSPACE SNAPSHOT, four limits, the NUMBER of paths, the paths, and the excludes."""
    workspace, snapshot, *numbers = arguments[:7]
    *limits, number = [int(limit) for limit in numbers]
    # Nobody ends the command of an exec whose client hung up: it would wait for ever to write.
    signal.alarm(limits[3] + PATIENCE)
    paths, exclude = arguments[7 : 7 + number], arguments[7 + number :]
    old: set[bytes] = set()
    if not paths:
        with open(snapshot, "rb") as file:
            old.update(file.read().split(b"\0"))
    Collection(Output(1), limits, paths, exclude, old).run(workspace)
