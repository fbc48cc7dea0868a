"""The collector, a program in the pod, sends the files that an action declares as artifacts.

The tests run the collector's packed code in a separate Python process, on real folders.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import tarfile
import time

import pytest

from agent.cluster.artifacts import collect
from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.cluster.in_pod.files import collect_files
from agent.domain.actions import ArtifactRules
from tests.unit.cluster.in_pod.places import Place


def test_files_of_the_clone_are_sent_only_if_they_changed(place: Place) -> None:
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
    assert received.checked_manifest.left_out == ()


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
def test_names_are_sent_byte_for_byte(place: Place, name: bytes) -> None:
    place.write(name, b"data of it")
    received = place.collect()
    assert received.contents == {name: b"data of it"}
    assert received.checked_manifest.left_out_files == 0


def test_modes_are_sent_without_setuid(place: Place) -> None:
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


def test_sizes_next_to_the_block_sizes(place: Place) -> None:
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


def test_large_and_many_files(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_hard_link_is_sent_as_a_separate_file(place: Place) -> None:
    os.link(place.write("one", b"same"), place.root / "two")
    assert place.collect().contents == {b"one": b"same", b"two": b"same"}


# ---- limits of the number and size of files


@pytest.mark.parametrize(
    ("limits", "sent", "why"),
    [
        (ArchiveLimits(2, 100, 1000, 60), {b"a", b"b"}, "over the limit of 2 files"),
        (ArchiveLimits(9, 20, 1000, 60), {b"a", b"c"}, "30 bytes, over the limit of 20 for a file"),
        (ArchiveLimits(9, 100, 25, 60), {b"a", b"c"}, "over the limit of 25 bytes in all"),
    ],
)
def test_a_limit_cuts_the_default_set_and_ends_a_declared_one(
    place: Place, limits: ArchiveLimits, sent: set[bytes], why: str
) -> None:
    for name, size in (("a", 10), ("b", 30 if limits.files > 2 else 1), ("c", 10)):
        place.write(name, b"x" * size)
    received = place.collect(limits=limits)
    assert set(received.contents) == sent
    assert why in received.left_out.values()
    assert received.checked_manifest.exceeded is None

    declared = place.collect("*", limits=limits)
    assert declared.checked_manifest.exceeded is not None
    assert declared.checked_manifest.exceeded.why == why
    assert set(declared.contents) <= sent


def test_the_time_limit(place: Place) -> None:
    place.write("file")
    limits = ArchiveLimits(9, 9, 9, -4)
    received = place.collect(limits=limits)
    assert received.contents == {}
    assert received.left_out == {b"file": "not reached within the limit of -3 s"}
    assert place.collect("file", limits=limits).checked_manifest.exceeded is not None
    os.remove(place.root / "file")
    place.write("folder/inside")
    assert place.collect(limits=limits).left_out == {b"folder": "not reached within the limit of -3 s"}


def test_left_out_files_beyond_the_listed_ones_are_counted(place: Place) -> None:
    for index in range(250):
        os.symlink("x", place.root / f"link{index:03}")
    place.write(".git/HEAD")
    received = place.collect()
    assert len(received.left_out) == 100
    assert received.checked_manifest.left_out_files == 251


# ---- files that are artifacts if no path is declared, and declared paths


def test_the_default_set_excludes_folders_of_tools(place: Place) -> None:
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
    assert received.checked_manifest.unmatched == ("nothing/*.txt",)
    assert set(place.collect(exclude=("dist", "sub/*")).contents) == {b"report.xml"}


def test_folders_that_cannot_match_are_not_entered() -> None:
    declared = collect_files.Collector(collect_files.Output(1), [1, 1, 1, 1], ["dist/*/x", "a/**"], [], set())
    wanted = {"dist": True, "dist/any": True, "dist/any/x": True, "src": False, "a": True, "a/b/c": True}
    assert {path: declared.enter(path, "") for path in wanted} == wanted


# ---- the collector as a process


def test_a_python_module_of_the_workspace_is_never_imported(place: Place) -> None:
    for name in ("zlib.py", "hashlib.py", "re.py", "os.py", "binascii.py"):
        place.write(name, b"raise SystemExit(3)")
    assert len(place.collect("*").contents) == 5


def test_a_missing_snapshot_is_a_failure(place: Place) -> None:
    place.snapshot.unlink()
    done = subprocess.run(place.command(), capture_output=True, check=False)
    assert done.returncode == 1
    assert b"FileNotFoundError" in done.stderr
    assert done.stdout == b""


def test_a_closed_pipe_ends_the_collector(place: Place) -> None:
    place.write("large", b"x" * (1 << 20))
    with subprocess.Popen(place.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        os.read(process.stdout.fileno(), 100)
        process.stdout.close()
        assert b"BrokenPipeError" in process.stderr.read()
    assert process.returncode == 1


def test_a_collector_whose_output_is_not_read_ends_itself(place: Place) -> None:
    """The collector reports more globs without a file than the smallest pipe can hold."""
    globs = tuple(f"{index:0>100}" for index in range(100))
    # The collector gets a part of these seconds, and kills itself three seconds after its start.
    seconds = (3 - collect_files.ALARM_SECONDS) / (1 - collect.MARGIN)
    command = place.command(ArtifactRules(globs), ArchiveLimits(9, 9, 9, seconds))
    read, write = os.pipe()
    size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1)
    with subprocess.Popen(command, stdout=write) as process:
        assert process.wait(30) == -signal.SIGALRM
    assert len(os.read(read, 2 * size)) == size, "the pipe was not full"
    os.close(read)
    os.close(write)
