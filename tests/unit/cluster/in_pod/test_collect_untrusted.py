"""The collector of artifacts refuses links, devices and other entries that the commands can leave in a workspace."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cluster.artifacts.archive_reader import ArchiveReader
from agent.cluster.in_pod import workspace
from agent.cluster.in_pod.files import collect_files
from tests.unit.cluster.in_pod.places import LIMITS, Place, Received, make_specials


@pytest.mark.parametrize("paths", [(), ("**",)])
def test_only_regular_files_inside_are_sent(place: Place, paths: tuple[str, ...]) -> None:
    (place.root.parent / "outside").write_bytes(b"secret")
    wanted = make_specials(place)
    received = place.collect(*paths)
    assert received.contents == {b"folder/inside": b"fine"}
    assert received.left_out == wanted
    assert received.checked_manifest.left_out_files == len(wanted)


def test_a_path_through_a_link_matches_nothing(place: Place) -> None:
    make_specials(place)
    received = place.collect("etc/passwd", "loop/folder/inside", "harmless")
    assert received.contents == {}
    assert received.checked_manifest.unmatched == ("etc/passwd", "loop/folder/inside", "harmless")


def test_a_folder_that_becomes_a_link_is_not_entered(place: Place) -> None:
    make_specials(place)
    root = os.open(place.root, os.O_RDONLY)
    os.close(workspace.open_folder(root, "folder"))
    for path in ("etc", "loop/folder", "folder/up"):
        with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
            workspace.open_folder(root, path)
    os.close(root)


def test_a_file_that_was_replaced_is_not_read(place: Place) -> None:
    facts = os.stat(place.write("regular"))
    make_specials(place)
    root = os.open(place.root, os.O_RDONLY)
    collection = collect_files.Collector(collect_files.Output(-1), [9, 9, 9, 9], [], [], set())
    for name in ("absolute", "harmless", "pipe", "folder", "socket", "gone"):
        collection.send_or_leave_out(name, name, root, facts)
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


@pytest.mark.parametrize("paths", [(), ("**",)])
def test_a_link_at_the_end_of_a_path_beyond_a_line_of_the_manifest(place: Place, paths: tuple[str, ...]) -> None:
    here = os.open(place.root, os.O_RDONLY)
    for _ in range(700):
        os.mkdir("d" * 200, dir_fd=here)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.symlink("nowhere", "link", dir_fd=here)
    os.close(here)
    place.write("report.txt")
    received = place.collect(*paths)
    assert set(received.contents) == {b"report.txt"}
    assert list(received.left_out.values()) == ["a path longer than 4096 bytes"]
    assert max(map(len, received.left_out)) < 300
    subprocess.run(["rm", "-rf", place.root], check=True)


@pytest.fixture
def as_nobody() -> Iterator[Place]:
    """Yield a workspace that an unprivileged user can enter. Root could read every file, whatever its mode."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        place = Place(Path(folder) / "workspace", Path(folder) / "snapshot")
        place.root.mkdir()
        place.root.chmod(0o755)
        place.snapshot.write_bytes(b"")
        yield place


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
        received.feed(reader, stream.read())
    reader.close()
    return received


def test_the_manifest_names_unreadable_files(as_nobody: Place) -> None:
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
    assert received.checked_manifest.exceeded is not None
    assert received.checked_manifest.exceeded.path == b"shut"
    (as_nobody.root / "folder").chmod(0o700)


@pytest.mark.parametrize(("change", "size"), [("shrink", 1 << 20), ("grow", 60 << 20), ("rewrite", 20 << 20)])
def test_the_manifest_names_a_file_that_changes_while_it_is_read(place: Place, change: str, size: int) -> None:
    path = place.write("moving", b"a" * (20 << 20))
    received, reader = Received(), ArchiveReader(LIMITS)
    with subprocess.Popen(place.command(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        # The pipe holds far fewer bytes than the file has. So here the collector is still reading the file.
        received.feed(reader, os.read(process.stdout.fileno(), 4096))
        if change == "rewrite":
            with open(path, "r+b") as file:
                file.write(b"b" * size)
        else:
            os.truncate(path, size)
        while data := os.read(process.stdout.fileno(), 1 << 15):
            received.feed(reader, data)
    reader.close()
    assert process.returncode == 0
    assert received.checked_manifest.changed == (b"moving",)
    assert len(received.contents[b"moving"]) == 20 << 20
