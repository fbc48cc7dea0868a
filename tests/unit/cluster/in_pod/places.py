"""A workspace on this machine, for the tests of the programs that run in a pod.

The collector, the program that sends the artifacts out of a pod, here reads that workspace.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from agent.cluster import packaging
from agent.cluster.artifacts import collect as collect_module
from agent.cluster.artifacts.archive_manifest import ArchiveManifest
from agent.cluster.artifacts.archive_reader import ArchiveLimits, ArchiveReader
from agent.cluster.in_pod import workspace
from agent.domain.actions import ArtifactRules
from agent.domain.artifacts import FileData, FileEnd, FileStart

LIMITS = ArchiveLimits(files=20_000, file_bytes=1 << 30, total_bytes=2 << 30, seconds=60)


def as_run_here(command: list[str], snapshot: Path) -> list[str]:
    """Return the command of a pod with this machine's Python, and with `snapshot` as the path of the snapshot file."""
    return [sys.executable, *(str(snapshot) if word == packaging.SNAPSHOT else word for word in command[1:])]


@dataclass
class Received:
    """What one run of the collector has sent: files, their modes, and the manifest."""

    contents: dict[bytes, bytes] = field(default_factory=dict)
    modes: dict[bytes, int] = field(default_factory=dict)
    manifest: ArchiveManifest | None = None

    def feed(self, reader: ArchiveReader, data: bytes) -> None:
        for item in reader.feed(data):
            if isinstance(item, FileStart):
                self.path, self.pieces = item.path, bytearray()
                self.modes[item.path] = item.mode
            elif isinstance(item, FileData):
                self.pieces += item.data
            elif isinstance(item, FileEnd):
                assert hashlib.sha256(self.pieces).digest() == item.sha256
                self.contents[self.path] = bytes(self.pieces)
            elif isinstance(item, ArchiveManifest):
                self.manifest = item

    @property
    def checked_manifest(self) -> ArchiveManifest:
        assert self.manifest is not None
        return self.manifest

    @property
    def left_out(self) -> dict[bytes, str]:
        return {one.path: one.why for one in self.checked_manifest.left_out}


@dataclass
class Place:
    """A workspace, and the snapshot file that lists its files before the commands run. Lives for one test."""

    root: Path
    snapshot: Path

    def write(self, name: str | bytes, data: bytes = b"x", mode: int = 0o644) -> bytes:
        path = os.path.join(os.fsencode(self.root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
        return path

    def take_snapshot(self) -> None:
        workspace.take_snapshot(str(self.root), str(self.snapshot))

    def command(self, rules: ArtifactRules = ArtifactRules(), limits: ArchiveLimits = LIMITS) -> list[str]:  # noqa: B008
        return as_run_here(collect_module.collect_command(rules, limits, workspace=str(self.root)), self.snapshot)

    def collect(self, *paths: str, exclude: tuple[str, ...] = (), limits: ArchiveLimits = LIMITS) -> Received:
        received = Received()
        reader = ArchiveReader(LIMITS)
        command = self.command(ArtifactRules(paths, exclude), limits)
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=self.root) as process:
            assert process.stdout is not None
            while data := os.read(process.stdout.fileno(), 1 << 15):
                received.feed(reader, data)
        assert process.returncode == 0
        reader.close()
        return received


def make_specials(place: Place) -> dict[bytes, str]:
    place.write("folder/inside", b"fine")
    os.symlink("/etc/passwd", place.root / "absolute")
    os.symlink("../outside", place.root / "upwards")
    os.symlink("nowhere", place.root / "dangling")
    os.symlink("folder/inside", place.root / "harmless")
    os.symlink(".", place.root / "loop")
    os.symlink("..", place.root / "folder" / "up")
    os.symlink("/etc", place.root / "etc")
    os.mkfifo(place.root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(place.root, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    links = (b"absolute", b"upwards", b"dangling", b"harmless", b"loop", b"folder/up", b"etc")
    wanted = dict.fromkeys(links, "a symbolic link") | {b"pipe": "a named pipe", b"socket": "a socket"}
    if os.geteuid() == 0:
        os.mknod(place.root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        wanted[b"device"] = "a device"
    return wanted
