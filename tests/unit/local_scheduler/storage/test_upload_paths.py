"""Uploads to the local scheduler: no file leaves the action's folder, and a broken upload leaves no file."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart
from agent.local_scheduler.storage.uploads import Upload, UploadRefused, checked_path
from agent.pipeline.events import FileStored
from agent.protocol.translate import UploadEnd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path


def parts(*files: tuple[bytes, bytes], mode: int = 0o644) -> Iterator[FilePart | UploadEnd]:
    for path, content in files:
        yield FileStart(path, mode, len(content))
        for begin in range(0, len(content), 3):
            yield FileData(content[begin : begin + 3])
        yield FileEnd(hashlib.sha256(content).digest())
    yield UploadEnd(len(files), sum(len(content) for _, content in files))


def store(
    folder: Path, *files: tuple[bytes, bytes], mode: int = 0o644, previous: Sequence[FileStored] = ()
) -> list[FileStored]:
    upload = Upload(folder, "a", durable=True)
    try:
        upload.feed(parts(*files, mode=mode))
        return upload.finish(previous)
    finally:
        upload.abandon()


def receive(folder: Path, sent: Iterable[FilePart | UploadEnd | None]) -> None:
    upload = Upload(folder, "a", durable=False)
    try:
        upload.feed(sent)
        upload.finish(())
    finally:
        upload.abandon()


def tree(folder: Path) -> list[bytes]:
    root = os.fsencode(folder)
    found = [os.path.join(where, name) for where, _, names in os.walk(root) for name in names]
    return sorted(os.path.relpath(path, root) for path in found)


@pytest.mark.parametrize("path", [b"a", b"a/b/c", b"...", b"a..b", b"..a/b", b" ", b"\xff\n\\", b"-rf", b"a" * 255])
def test_paths_within_the_folder_are_stored_as_they_are(tmp_path: Path, path: bytes) -> None:
    store(tmp_path, (path, b"content"))
    assert tree(tmp_path / "a") == [path]


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"/",
        b"/a",
        b"..",
        b"../a",
        b"a/..",
        b"a/../b",
        b".",
        b"./a",
        b"a/.",
        b"a//b",
        b"a/",
        b"a\0b",
        b"a/" * 2048 + b"a",
    ],
)
def test_paths_that_leave_the_folder_are_refused(path: bytes) -> None:
    with pytest.raises(UploadRefused, match="is not a path within the folder"):
        checked_path(path)


def test_no_existing_link_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "link").symlink_to(outside)
    (folder / "a" / "file").symlink_to(outside / "file")
    with pytest.raises(UploadRefused, match="cannot be stored"):
        store(folder, (b"link/x", b"1"))
    store(folder, (b"file", b"1"))
    assert not (folder / "a" / "file").is_symlink()
    assert tree(outside) == []


def test_the_folder_of_the_action_may_not_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UploadRefused):
        store(tmp_path, (b"x", b"1"))
    assert tree(tmp_path / "elsewhere") == []


def test_modes_are_kept_without_the_dangerous_bits(tmp_path: Path) -> None:
    store(tmp_path, (b"deep/x", b"1"), mode=0o106755)
    assert (tmp_path / "a" / "deep" / "x").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "a" / "deep").stat().st_mode & 0o777 == 0o755


def test_the_umask_holds_for_files(tmp_path: Path) -> None:
    # Attack: an action gives its file mode 0777. Without the umask of the local scheduler, any local user could write
    # the file.
    before = os.umask(0o027)
    try:
        store(tmp_path, (b"x", b"1"), (b"y", b"2"), mode=0o777)
    finally:
        os.umask(before)
    assert {(tmp_path / "a" / name).stat().st_mode & 0o777 for name in "xy"} == {0o750}


def test_a_second_upload_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    first = store(tmp_path, (b"gone/x", b"1"), (b"same", b"2"))
    (tmp_path / "a" / "mine").write_text("not from an upload")
    second = store(tmp_path, (b"same", b"3"), (b"new", b"4"), previous=first)
    assert tree(tmp_path / "a") == [b"mine", b"new", b"same"]
    assert (tmp_path / "a" / "same").read_bytes() == b"3"
    assert [(each.path, each.size) for each in second] == [(b"same", 1), (b"new", 1)]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "x").mkdir(parents=True)
    with pytest.raises(UploadRefused, match="cannot be stored"):
        store(tmp_path, (b"x", b"1"))


GOOD = hashlib.sha256(b"12").digest()
START = FileStart(b"f", 0o644, 2)
BROKEN: list[tuple[list[FilePart | UploadEnd | None], str]] = [
    ([START, FileData(b"12"), FileEnd(b"\0" * 32)], "the sha256 of b'f' is wrong"),
    ([START, FileData(b"1"), FileEnd(GOOD)], "b'f' has 1 bytes instead of 2"),
    ([START, FileData(b"123")], "b'f' is longer than its 2 bytes"),
    ([START, START], "b'f' has no file end"),
    ([START, FileData(b"12"), FileEnd(GOOD), START], "b'f' is sent twice"),
    ([START, UploadEnd(1, 2)], "b'f' has no file end"),
    ([FileData(b"1")], "data without a file start"),
    ([FileEnd(GOOD)], "a file end without a file start"),
    ([UploadEnd(1, 2)], "0 files of 0 bytes arrived, the agent sent 1 of 2"),
    ([UploadEnd(0, 0), START], "a part follows the end of the upload"),
    ([None, START, FileData(b"12"), FileEnd(GOOD)], "the end of the upload is missing"),
]


@pytest.mark.parametrize(("sent", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_upload_is_refused_and_leaves_nothing(
    tmp_path: Path, sent: list[FilePart | UploadEnd | None], message: str
) -> None:
    with pytest.raises(UploadRefused) as refused:
        receive(tmp_path, sent)
    assert str(refused.value) == message
    assert os.listdir(tmp_path) == []
