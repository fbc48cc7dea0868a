"""The programs of container `files`, run as they run there (packed, by a Python of their own), on real folders."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.cluster.artifacts import collect as collect_module
from agent.cluster.artifacts.archive_manifest import ArchiveManifest
from agent.cluster.artifacts.archive_reader import ArchiveLimits, ArchiveReader
from agent.cluster.in_pod import collect_files, packaging, workspace
from agent.cluster.in_pod.glob import compile_folders, compile_globs
from agent.domain.actions import ArtifactRules
from agent.domain.artifacts import FileData, FileEnd, FileStart

LIMITS = ArchiveLimits(files=20_000, file_bytes=1 << 30, total_bytes=2 << 30, seconds=60)


def here(command: list[str], snapshot: Path) -> list[str]:
    """Return the command as it can run on this machine."""
    return [sys.executable, *(str(snapshot) if word == packaging.SNAPSHOT else word for word in command[1:])]


@dataclass
class Received:
    """What came out of one collection."""

    contents: dict[bytes, bytes] = field(default_factory=dict)
    modes: dict[bytes, int] = field(default_factory=dict)
    manifest: ArchiveManifest | None = None

    def take(self, reader: ArchiveReader, data: bytes) -> None:
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
    def said(self) -> ArchiveManifest:
        assert self.manifest is not None
        return self.manifest

    @property
    def left_out(self) -> dict[bytes, str]:
        return {one.path: one.why for one in self.said.left_out}


@dataclass
class Place:
    """A workspace, and a snapshot of it."""

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
        return here(collect_module.collect_command(rules, limits, workspace=str(self.root)), self.snapshot)

    def collect(self, *paths: str, exclude: tuple[str, ...] = (), limits: ArchiveLimits = LIMITS) -> Received:
        received = Received()
        reader = ArchiveReader(LIMITS)
        command = self.command(ArtifactRules(paths, exclude), limits)
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=self.root) as process:
            assert process.stdout is not None
            while data := os.read(process.stdout.fileno(), 1 << 15):
                received.take(reader, data)
        assert process.returncode == 0
        reader.close()
        return received


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "workspace", tmp_path / "snapshot")
    made.root.mkdir()
    made.take_snapshot()
    return made


# ------------------------------------------------------------------------------------------------ what is collected


def test_of_a_clone_only_what_was_made_or_changed_is_sent(place: Place) -> None:
    for name in ("same", "grown", "rewritten", "replaced", "unpacked", "copied", "touched"):
        place.write(name, b"old")
    os.symlink("same", place.root / "link-of-the-clone")
    old = (10**18, 10**18)
    for path in place.root.iterdir():
        os.utime(path, ns=old, follow_symlinks=False)
    with tarfile.open(place.root.parent / "old.tar", "w") as archive:
        archive.add(place.root / "unpacked", "unpacked")
    place.take_snapshot()

    with open(place.root / "grown", "ab") as file:
        file.write(b"er")
    (place.root / "rewritten").write_bytes(b"new")
    os.utime(place.root / "rewritten", ns=old)
    place.write("other", b"new")
    os.utime(place.root / "other", ns=old)
    os.rename(place.root / "other", place.root / "replaced")
    subprocess.run(["tar", "xf", place.root.parent / "old.tar", "-C", place.root], check=True)
    subprocess.run(["cp", "-p", place.root / "same", place.root / "copied"], check=True)
    place.write("made", b"new")
    os.utime(place.root / "made", ns=old)

    received = place.collect()
    assert set(received.contents) == {b"grown", b"rewritten", b"replaced", b"unpacked", b"copied", b"made"}
    assert received.contents[b"grown"] == b"older"
    assert received.said.left_out == ()


@pytest.mark.parametrize(
    "name",
    [
        b"with space",
        "ümläut/日本".encode(),
        b"new\nline",
        b"tab\t\x01\x7f",
        b"not utf-8 \xff\xfe",
        b'quote" and \\ backslash',
        b"-rf",
        b" ",
        b"~",
        b"...",
        b"sealci-manifest",
        b"a" * 100,
        b"b" * 101,
        b"c" * 255,
        b"/".join([b"deep"] * 300),
    ],
)
def test_names_come_as_they_are_on_the_disk(place: Place, name: bytes) -> None:
    place.write(name, b"data of it")
    received = place.collect()
    assert received.contents == {name: b"data of it"}
    assert received.said.left_out_files == 0


def test_modes_come_without_what_could_do_harm(place: Place) -> None:
    for name, mode in (("plain", 0o600), ("program", 0o755), ("setuid", 0o4755), ("none", 0o000)):
        place.write(name, mode=mode)
    received = place.collect()
    wanted = {b"plain": 0o600, b"program": 0o755, b"setuid": 0o755, b"none": 0o000}
    if os.geteuid() != 0:
        del wanted[b"none"]
    assert received.modes == wanted


def test_empty_files_and_an_empty_workspace(place: Place) -> None:
    assert place.collect().contents == {}
    place.write("empty", b"")
    place.write("after", b"12")
    (place.root / "folder").mkdir()
    assert place.collect().contents == {b"empty": b"", b"after": b"12"}


def test_sizes_around_the_blocks(place: Place) -> None:
    sizes = [
        1,
        511,
        512,
        513,
        collect_files.BATCH - 1,
        collect_files.BATCH,
        collect_files.BATCH + 1,
        3 * collect_files.BATCH + 7,
    ]
    for size in sizes:
        place.write(str(size), os.urandom(size))
    received = place.collect()
    assert {name: len(data) for name, data in received.contents.items()} == {b"%d" % size: size for size in sizes}
    for name, data in received.contents.items():
        assert data == (place.root / os.fsdecode(name)).read_bytes()


def test_bulk(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    large = os.urandom(50 << 20)
    place.write("large.bin", large)
    began = time.perf_counter()
    received = place.collect("large.bin")
    bulk = time.perf_counter() - began
    assert hashlib.sha256(received.contents[b"large.bin"]).digest() == hashlib.sha256(large).digest()

    for index in range(5000):
        place.write(f"many/{index // 100}/{index}", b"%d" % index * 200)
    began = time.perf_counter()
    received = place.collect("many")
    many = time.perf_counter() - began
    assert len(received.contents) == 5000
    assert received.contents[b"many/49/4999"] == b"4999" * 200
    with capsys.disabled():
        print(f"\n  collector|reader: {50 / bulk:.0f} MiB/s in one file, {5000 / many:.0f} small files/s")


def test_hard_links_are_files_of_their_own(place: Place) -> None:
    os.link(place.write("one", b"same"), place.root / "two")
    assert place.collect().contents == {b"one": b"same", b"two": b"same"}


# ------------------------------------------------------------------------------------------------- what is refused


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


@pytest.mark.parametrize("paths", [(), ("**",)])
def test_only_regular_files_inside_are_sent(place: Place, paths: tuple[str, ...]) -> None:
    (place.root.parent / "outside").write_bytes(b"secret")
    wanted = make_specials(place)
    received = place.collect(*paths)
    assert received.contents == {b"folder/inside": b"fine"}
    assert received.left_out == wanted
    assert received.said.left_out_files == len(wanted)


def test_a_path_through_a_link_matches_nothing(place: Place) -> None:
    make_specials(place)
    received = place.collect("etc/passwd", "loop/folder/inside", "harmless")
    assert received.contents == {}
    assert received.said.unmatched == ("etc/passwd", "loop/folder/inside", "harmless")


def test_a_folder_that_becomes_a_link_is_not_entered(place: Place) -> None:
    make_specials(place)
    root = os.open(place.root, os.O_RDONLY)
    os.close(workspace.open_folder(root, "folder"))
    for path in ("etc", "loop/folder", "folder/up"):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            workspace.open_folder(root, path)
    os.close(root)


def test_a_file_that_becomes_something_else_is_not_read(place: Place) -> None:
    facts = os.stat(place.write("regular"))
    make_specials(place)
    root = os.open(place.root, os.O_RDONLY)
    collection = collect_files.Collector(collect_files.Output(-1), [9, 9, 9, 9], [], [], set())
    for name in ("absolute", "harmless", "pipe", "folder", "socket", "gone"):
        collection.consider(name, name, root, facts)
    os.close(root)
    assert dict(collection.left_out) == {
        "absolute": "unreadable: Too many levels of symbolic links",
        "harmless": "unreadable: Too many levels of symbolic links",
        "pipe": "replaced while it was opened",
        "folder": "replaced while it was opened",
        "socket": "unreadable: No such device or address",
        "gone": "unreadable: No such file or directory",
    }
    assert collection.files == 0


def test_another_file_system_is_not_entered() -> None:
    root = os.open("/", os.O_RDONLY)
    missed: dict[str, str] = {}
    entered: list[str] = []

    def enter(path: str, _: str) -> bool:
        entered.append(path)
        return False

    assert "proc" not in {path for path, *_ in workspace.walk(root, enter, missed.__setitem__)}
    os.close(root)
    assert missed["proc"] == "another file system"
    assert "proc" not in entered
    assert "usr" in entered


def test_a_path_too_long_is_left_out(place: Place) -> None:
    here = os.open(place.root, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    place.write("short")
    received = place.collect()
    assert set(received.contents) == {b"short"}
    assert list(received.left_out.values()) == ["a path longer than 4096 bytes"]
    subprocess.run(["rm", "-rf", place.root], check=True)


@pytest.fixture
def as_nobody() -> Iterator[Place]:
    """Give a workspace that is read by another user, as no test as root could fail to read a file."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        made = Place(Path(folder) / "workspace", Path(folder) / "snapshot")
        made.root.mkdir()
        made.root.chmod(0o755)
        made.snapshot.write_bytes(b"")
        yield made


def collect_as_nobody(place: Place, paths: list[str]) -> Received:
    reading, writing = os.pipe()
    received, reader = Received(), ArchiveReader(LIMITS)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        output = collect_files.Output(writing)
        collect_files.Collector(output, [10, 1000, 1000, 60], paths, [], set()).run(str(place.root))
    finally:
        if root:
            os.seteuid(0)
        os.close(writing)
    with open(reading, "rb") as stream:
        received.take(reader, stream.read())
    reader.close()
    return received


def test_what_cannot_be_read_is_said(as_nobody: Place) -> None:
    as_nobody.write("open", mode=0o644)
    as_nobody.write("shut", mode=0o000)
    as_nobody.write("folder/inside")
    (as_nobody.root / "folder").chmod(0o000)
    received = collect_as_nobody(as_nobody, [])
    assert set(received.contents) == {b"open"}
    assert received.left_out == {
        b"shut": "unreadable: Permission denied",
        b"folder": "unreadable folder: Permission denied",
    }
    received = collect_as_nobody(as_nobody, ["shut"])
    assert received.said.exceeded is not None
    assert received.said.exceeded.path == b"shut"
    (as_nobody.root / "folder").chmod(0o700)


@pytest.mark.parametrize(("change", "size"), [("shrink", 1 << 20), ("grow", 60 << 20), ("rewrite", 20 << 20)])
def test_a_file_that_changes_while_it_is_read_is_told(place: Place, change: str, size: int) -> None:
    path = place.write("moving", b"a" * (20 << 20))
    received, reader = Received(), ArchiveReader(LIMITS)
    with subprocess.Popen(place.command(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        # The pipe holds far less than the file: the collector is in the middle of it.
        received.take(reader, os.read(process.stdout.fileno(), 4096))
        if change == "rewrite":
            with open(path, "r+b") as file:
                file.write(b"b" * size)
        else:
            os.truncate(path, size)
        while data := os.read(process.stdout.fileno(), 1 << 15):
            received.take(reader, data)
    reader.close()
    assert process.returncode == 0
    assert received.said.changed == (b"moving",)
    assert len(received.contents[b"moving"]) == 20 << 20


# ---------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limits", "sent", "why"),
    [
        (ArchiveLimits(2, 100, 1000, 60), {b"a", b"b"}, "over the limit of 2 files"),
        (ArchiveLimits(9, 20, 1000, 60), {b"a", b"c"}, "30 bytes, over the limit of 20 for a file"),
        (ArchiveLimits(9, 100, 25, 60), {b"a", b"c"}, "over the limit of 25 bytes in all"),
    ],
)
def test_over_a_limit_the_default_set_is_cut_and_a_declared_one_ends(
    place: Place, limits: ArchiveLimits, sent: set[bytes], why: str
) -> None:
    for name, size in (("a", 10), ("b", 30 if limits.files > 2 else 1), ("c", 10)):
        place.write(name, b"x" * size)
    received = place.collect(limits=limits)
    assert set(received.contents) == sent
    assert why in received.left_out.values()
    assert received.said.exceeded is None

    declared = place.collect("*", limits=limits)
    assert declared.said.exceeded is not None
    assert declared.said.exceeded.why == why
    assert set(declared.contents) <= sent


def test_the_time_limit(place: Place) -> None:
    place.write("file")
    limits = ArchiveLimits(9, 9, 9, -4)
    received = place.collect(limits=limits)
    assert received.contents == {}
    assert received.left_out == {b"file": "not reached within the limit of -3 s"}
    assert place.collect("file", limits=limits).said.exceeded is not None
    os.remove(place.root / "file")
    place.write("folder/inside")
    assert place.collect(limits=limits).left_out == {b"folder": "not reached within the limit of -3 s"}


def test_left_out_files_are_counted_when_they_are_too_many_to_name(place: Place) -> None:
    for index in range(250):
        os.symlink("x", place.root / f"link{index:03}")
    place.write(".git/HEAD")
    received = place.collect()
    assert len(received.left_out) == 100
    assert received.said.left_out_files == 251


# ----------------------------------------------------------------------------------------------------------- globs


def test_the_default_set_leaves_out_what_tools_keep(place: Place) -> None:
    for name in (".git/HEAD", "a/node_modules/x/y", ".venv/bin/python", "src/__pycache__/m.pyc", "src/main.py"):
        place.write(name)
    received = place.collect()
    assert set(received.contents) == {b"src/main.py"}
    assert received.left_out == dict.fromkeys(
        (b".git", b"a/node_modules", b".venv", b"src/__pycache__"), "excluded by default"
    )


def test_declared_paths_and_excludes(place: Place) -> None:
    for name in ("dist/app", "dist/app.map", "dist/sub/lib", "node_modules/m", "report.xml", "sub/report.xml"):
        place.write(name)
    received = place.collect("dist/", "report.xml", "node_modules/*", "nothing/*.txt", exclude=("**/*.map",))
    assert set(received.contents) == {b"dist/app", b"dist/sub/lib", b"node_modules/m", b"report.xml"}
    assert received.said.unmatched == ("nothing/*.txt",)
    assert set(place.collect(exclude=("dist", "sub/*")).contents) == {b"report.xml"}


@pytest.mark.parametrize(
    ("glob", "matches", "others"),
    [
        ("a.txt", ["a.txt", "a.txt/below"], ["b/a.txt", "aatxt", "a.txt2"]),
        ("*.txt", ["a.txt", ".txt", "new\nline.txt"], ["b/a.txt", "a.txt.gz"]),
        ("**/*.txt", ["a.txt", "b/a.txt", "b/c/a.txt"], ["a.txtx"]),
        ("dist/", ["dist/a", "dist/a/b"], ["dist", "x/dist/a"]),
        ("dist", ["dist", "dist/a"], ["distant", "x/dist"]),
        ("dist/**", ["dist/a", "dist/a/b"], ["dist"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b", "a/b/c"], ["ab", "a/xb"]),
        ("**", ["a", "a/b"], []),
        ("", ["a", "a/b"], []),
        (".", ["a", "a/b"], []),
        ("./a", ["a"], ["b"]),
        ("/a", ["a"], ["b/a"]),
        ("a?c", ["abc"], ["a/c", "ac", "abbc"]),
        ("[ab]c", ["ac", "bc"], ["cc", "abc"]),
        ("[!ab]c", ["cc"], ["ac", "/c"]),
        ("[]]", ["]"], ["[]]"]),
        ("[a-c]", ["b"], ["d", "-"]),
        ("a[/]b", ["a[/]b"], ["a/b"]),
        ("[x", ["[x"], ["x"]),
        ("[z-a]", ["[z-a]"], ["b"]),
        (r"\*", ["*"], ["a"]),
        ("a.b+c(d)", ["a.b+c(d)"], ["aab+c(d)"]),
        ("../x", [], ["x", "a/x"]),
    ],
)
def test_globs(glob: str, matches: list[str], others: list[str]) -> None:
    (pattern,) = compile_globs([glob])
    assert [path for path in matches if not pattern.fullmatch(path)] == []
    assert [path for path in others if pattern.fullmatch(path)] == []
    for path in matches:
        folders = path.split("/")[:-1]
        assert all(one.fullmatch(folder) for one, folder in zip(compile_folders(glob), folders, strict=False))


def test_folders_that_cannot_match_are_not_entered(place: Place) -> None:
    declared = collect_files.Collector(collect_files.Output(1), [1, 1, 1, 1], ["dist/*/x", "a/**"], [], set())
    wanted = {"dist": True, "dist/any": True, "dist/any/x": True, "src": False, "a": True, "a/b/c": True}
    assert {path: declared.enter(path, "") for path in wanted} == wanted


# --------------------------------------------------------------------------------------------------- the programs


def test_a_library_of_the_workspace_is_never_run(place: Place) -> None:
    for name in ("zlib.py", "hashlib.py", "re.py", "os.py", "binascii.py"):
        place.write(name, b"raise SystemExit(3)")
    assert len(place.collect("*").contents) == 5


def test_without_a_snapshot_nothing_looks_like_a_success(place: Place) -> None:
    place.snapshot.unlink()
    done = subprocess.run(place.command(), capture_output=True, check=False)
    assert done.returncode == 1
    assert b"FileNotFoundError" in done.stderr
    assert done.stdout == b""


def test_a_reader_that_goes_away_ends_the_collector(place: Place) -> None:
    place.write("large", b"x" * (1 << 20))
    with subprocess.Popen(place.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 100)
        process.stdout.close()
        assert b"BrokenPipeError" in process.stderr.read()
    assert process.returncode == 1


def test_a_collector_that_nobody_reads_ends_itself(place: Place) -> None:
    globs = tuple(f"{index:0>100}" for index in range(2000))
    seconds = 1 - collect_files.ALARM_SECONDS
    command = place.command(ArtifactRules(globs), ArchiveLimits(9, 9, 9, seconds))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.wait(30) == -signal.SIGALRM


def held(place: Place, seconds: float) -> tuple[subprocess.Popen[bytes], Path]:
    ready = place.root.parent / "ready"
    # A named pipe is opened only when both ends are: whoever reads it waits for the holder, without polling.
    os.mkfifo(ready)
    command = packaging.workspace_command(workspace=str(place.root), ready_path=str(ready), seconds=seconds)
    return subprocess.Popen(here(command, place.snapshot), stderr=subprocess.PIPE), ready


def test_the_holder_notes_what_is_there_and_leaves_on_term(place: Place) -> None:
    place.write("old")
    place.write(b"odd \n\xff name")
    with held(place, 60)[0] as process:
        (place.root.parent / "ready").read_bytes()
        place.write("new")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert set(place.collect().contents) == {b"new"}


def test_the_holder_leaves_by_itself(place: Place) -> None:
    process, ready = held(place, 0)
    with process:
        ready.read_bytes()
        assert process.wait(10) == 0


def test_the_snapshot_waits_for_the_clock_to_pass_what_it_saw(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = os.stat(place.write("file")).st_ctime_ns
    readings = iter([changed - 1, changed, changed + 1, changed + 2])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(readings))
    place.take_snapshot()
    assert list(readings) == [changed + 2]
