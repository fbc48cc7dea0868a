"""The program that writes inputs into the workspace. In a pod it runs in container `helper`."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import pytest

from agent.cluster import packaging
from agent.cluster.in_pod.objects.downloads import GAP_BYTES
from agent.cluster.in_pod.objects.file_records import encode_records
from tests.fakes.object_store import fake_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

File = tuple[bytes, bytes, int]


def stream(*files: File, end: int | None = None) -> bytes:
    """Return the stdin of the program for files of (path, content, mode)."""
    found = b""
    for path, content, mode in files:
        header = {
            "path": path.decode("utf-8", "surrogateescape"),
            "mode": mode,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        found += json.dumps(header).encode() + b"\n" + content
    return found + json.dumps({"end": len(files) if end is None else end}).encode() + b"\n"


@dataclass
class Pod:
    """The folders of container `helper`, with the order written and the FIFO `go` open, as the helper leaves them."""

    root: Path
    go: int

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    def command(self, word: str = "run") -> list[str]:
        snapshot = str(self.root / "snapshot") if word == "run" else ""
        words = [str(self.workspace), snapshot, str(self.root / "order" / "go"), str(self.root / "log"), word]
        return [sys.executable, *packaging.receive_inputs_program()[1:], *words]

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, data: bytes, word: str = "run") -> dict[str, Any]:
        done = subprocess.run(self.command(word), input=data, capture_output=True, check=True)
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    @property
    def words(self) -> bytes:
        """Return the words that have arrived in the FIFO `go`."""
        try:
            return os.read(self.go, 100)
        except BlockingIOError:
            return b""

    @property
    def names(self) -> list[bytes]:
        """Return the paths of everything in the workspace."""
        top = os.fsencode(self.workspace)
        found = [os.path.join(folder, name) for folder, names, files in os.walk(top) for name in (*names, *files)]
        return sorted(os.path.relpath(path, top) for path in found)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    for name in ("workspace", "order", "log"):
        (tmp_path / name).mkdir()
    (tmp_path / "order" / "setup").touch()
    (tmp_path / "log" / "user").write_text(f"{os.geteuid()} {os.getegid()}\n")
    os.mkfifo(tmp_path / "order" / "go")
    go = os.open(tmp_path / "order" / "go", os.O_RDWR | os.O_NONBLOCK)
    yield Pod(tmp_path, go)
    os.close(go)


def write(pipe: IO[bytes] | None, data: bytes) -> None:
    assert pipe is not None
    pipe.write(data)
    pipe.flush()


def test_the_commands_begin_once_after_all_files_have_arrived(pod: Pod) -> None:
    big, odd = os.urandom(700_000), b"a/\xff\xe9 \n\"'"
    (pod.workspace / "here").write_bytes(b"of the clone")
    files = [(b"wheels/x.whl", big, 0o640), (odd, b"odd", 0o755), (b"empty", b"", 0o600), (b"here", b"newer", 0o444)]
    data = stream(*files)
    with pod.start() as process:
        write(process.stdin, data[:-1])
        assert process.poll() is None
        assert pod.words == b""
        write(process.stdin, data[-1:])
        assert process.wait(30) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.read()) == {"files": 4, "bytes": len(big) + 8}
    assert pod.words == b"run\n"
    for path, content, mode in files:
        whole = os.path.join(os.fsencode(pod.workspace), path)
        with open(whole, "rb") as file:
            assert file.read() == content
        assert stat.S_IMODE(os.stat(whole).st_mode) == mode
    assert stat.S_IMODE((pod.workspace / "wheels").stat().st_mode) == 0o755
    assert pod.names == sorted([b"wheels", b"wheels/x.whl", b"a", odd, b"empty", b"here"]), "no temporary file is left"
    assert b"wheels/x.whl" in (pod.root / "snapshot").read_bytes(), "the files are no artifacts of the action"
    # The agent repeats the program if the answer was lost. The commands may have changed the files since.
    (pod.workspace / "here").unlink()
    assert pod.run(stream(*files)) == {"started": True}
    assert pod.words == b""
    assert not (pod.workspace / "here").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"link/x", "link is a symbolic link"),
        (b"folder/inner/x", "folder/inner is a symbolic link"),
        (b"outward", "outward is a symbolic link"),
        (b"file/x", "file is no folder"),
        (b"folder", "folder is no regular file"),
        (b"../x", "not a path within the workspace"),
        (b"/etc/x", "not a path within the workspace"),
        (b"n" * 300, "File name too long"),
    ],
)
def test_nothing_is_written_through_a_link_or_outside_the_workspace(pod: Pod, path: bytes, message: str) -> None:
    outside = pod.root / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"old")
    (pod.workspace / "link").symlink_to(outside)
    (pod.workspace / "folder").mkdir()
    (pod.workspace / "folder" / "inner").symlink_to(outside)
    (pod.workspace / "outward").symlink_to(outside / "file")
    (pod.workspace / "file").write_bytes(b"")
    before = pod.names
    answer = pod.run(stream((path, b"new", 0o644)))
    assert answer["error"] == "refused"
    assert message in answer["message"]
    assert pod.names == before
    assert {each.name: each.read_bytes() for each in outside.iterdir()} == {"file": b"old"}
    assert pod.words == b""


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data.replace(b"content", b"CONTENT"), "digest"),
        (lambda data: data[:-30], "broken"),
        (lambda data: data[:100], "broken"),
        (lambda data: b"", "broken"),
        (lambda data: stream((b"a", b"content", 0o644), end=2), "broken"),
    ],
)
def test_a_broken_stream_leaves_no_partial_file_and_starts_nothing(pod: Pod, change: Any, error: str) -> None:
    answer = pod.run(change(stream((b"a", b"content", 0o644))))
    assert answer["error"] == error
    assert pod.words == b""
    assert [name for name in pod.names if name != b"a"] == []
    assert not (pod.workspace / "a").exists() or (pod.workspace / "a").read_bytes() == b"content"
    assert pod.run(stream((b"a", b"content", 0o644)))["files"] == 1
    assert pod.words == b"run\n"


def test_a_new_run_ends_an_older_run_and_removes_what_it_has_left(pod: Pod) -> None:
    data = stream((b"a", b"x" * 100_000, 0o644))
    with pod.start() as older:
        write(older.stdin, data[:50_000])
        while not any(b".sealci-inputs-" in name and b"/0" in name for name in pod.names):
            assert older.poll() is None
        assert pod.run(data)["files"] == 1
        assert older.wait(30) == -9
    assert pod.names == [b"a"]
    assert pod.words == b"run\n"


def test_the_gate_of_an_action_with_services_gets_a_word_and_takes_the_snapshot_itself(pod: Pod) -> None:
    assert pod.run(stream((b"a", b"content", 0o644)), "tree")["files"] == 1
    assert pod.words == b"tree\n"
    assert not (pod.root / "snapshot").exists()
    assert pod.run(stream((b"a", b"other", 0o644)), "tree") == {"started": True}
    assert (pod.workspace / "a").read_bytes() == b"content"


# ---- files of the object store


def of_store(url: str, *paths: bytes, sha256: str = "") -> bytes:
    """Return the stdin of the program for files that the store has, as `/<path>` with the path as content."""
    found = b""
    for path in paths:
        digest = bytes.fromhex(sha256) or hashlib.sha256(path).digest()
        records = encode_records([(path.decode(), 0o640, len(path), digest, 0)])
        found += json.dumps({"url": f"{url}/{path.decode()}?s"}).encode() + b"\n" + records + b"\n"
    return found + json.dumps({"end": len(paths)}).encode() + b"\n"


def test_files_of_the_object_store_are_read_by_the_program(pod: Pod) -> None:
    paths = [f"d{number % 7}/{number}".encode() for number in range(100)]
    with fake_store() as store:
        store.objects = {f"/{path.decode()}?s": path for path in paths}
        store.faults.extend(["cut", 503])
        answer = pod.run(of_store(store.url, *paths))
    assert answer == {"files": 100, "bytes": sum(map(len, paths))}
    for path in paths:
        assert (pod.workspace / path.decode()).read_bytes() == path
    assert pod.words == b"run\n"


@pytest.mark.parametrize(
    ("faults", "sha256", "error"),
    [([404], "", "missing"), ([410], "", "missing"), ([403], "", "store"), ([], "00" * 32, "digest")],
)
def test_a_file_that_the_store_does_not_send_starts_nothing(
    pod: Pod, faults: list[int], sha256: str, error: str
) -> None:
    with fake_store() as store:
        store.objects = {"/a?s": b"a"}
        store.faults.extend(faults)
        answer = pod.run(of_store(store.url, b"a", sha256=sha256))
    assert answer["error"] == error
    assert pod.names == []
    assert pod.words == b""


def of_pack(url: str, pack: bytes, *places: tuple[int, int]) -> bytes:
    """Return the stdin of the program for files of one object: the file `f<start>` for each (start, size)."""
    records = [
        (f"f{start}", 0o640, size, hashlib.sha256(pack[start : start + size]).digest(), start) for start, size in places
    ]
    lines = (
        json.dumps({"url": f"{url}/pack?s"}).encode(),
        encode_records(records),
        json.dumps({"end": len(places)}).encode(),
    )
    return b"\n".join(lines) + b"\n"


FAR = 200_000 + GAP_BYTES


@pytest.mark.parametrize("ranges", [True, False])
def test_only_the_wanted_files_of_a_pack_are_read(pod: Pod, ranges: bool) -> None:
    pack = os.urandom(FAR + 100)
    places = ((10, 20_000), (20_010, 0), (50_010, 100_000), (FAR + 1, 50))
    with fake_store() as store:
        store.objects, store.ranges = {"/pack?s": pack}, ranges
        answer = pod.run(of_pack(store.url, pack, *places))
        found = {each.removeprefix("GET /pack?s ") for each in store.requests}
    assert answer == {"files": 4, "bytes": 120_050}
    for start, size in places:
        assert (pod.workspace / f"f{start}").read_bytes() == pack[start : start + size]
    assert found == {"bytes=10-150009", f"bytes={FAR + 1}-{FAR + 50}"}
    assert pod.words == b"run\n"


def test_after_a_break_only_the_files_that_are_not_complete_are_read(pod: Pod) -> None:
    pack = os.urandom(150_010)
    with fake_store() as store:
        store.objects = {"/pack?s": pack}
        store.faults.extend(["cut", 503])
        answer = pod.run(of_pack(store.url, pack, (10, 20_000), (50_010, 100_000)))
        found = [each.removeprefix("GET /pack?s ") for each in store.requests]
    assert answer == {"files": 2, "bytes": 120_000}
    assert found == ["bytes=10-150009", "bytes=50010-150009", "bytes=50010-150009"]
    assert (pod.workspace / "f50010").read_bytes() == pack[50_010:]


def test_a_file_of_a_pack_that_changes_on_its_way_is_read_once_more(pod: Pod) -> None:
    pack = os.urandom(150_010)
    with fake_store() as store:
        store.objects = {"/pack?s": pack}
        store.faults.append("flip")
        answer = pod.run(of_pack(store.url, pack, (10, 20_000), (50_010, 100_000)))
        found = [each.removeprefix("GET /pack?s ") for each in store.requests]
    assert answer == {"files": 2, "bytes": 120_000}
    assert found == ["bytes=10-150009"] * 2
    assert (pod.workspace / "f10").read_bytes() == pack[10:20_010]
