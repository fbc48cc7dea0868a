"""Archives of caches: what they hold, and what is refused before anything in the workspace changes."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from agent.cluster.in_pod.files import cache_archive, cache_hash
from agent.cluster.in_pod.files.cache_archive import NothingToPack, pack, unpack
from agent.cluster.in_pod.files.cache_hash import CacheFault, hash_files

LIMIT = 1 << 20
ODD = os.fsdecode(b"\xff \n'")


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def packed(workspace: Path, *paths: str, limit: int = LIMIT) -> io.BytesIO:
    file = io.BytesIO()
    pack(str(workspace), list(paths), file, limit)
    file.seek(0)
    return file


def restore(file: io.BytesIO, workspace: Path, *paths: str, limit: int = LIMIT) -> list[str]:
    workspace.mkdir(exist_ok=True)
    temporary = workspace / ".sealci-cache-1"
    try:
        return unpack(file, str(workspace), str(temporary), list(paths), None, limit)
    finally:
        # As the errand does.
        shutil.rmtree(temporary, ignore_errors=True)


def tree(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        kind = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else None
        # A link is new whenever it is restored.
        time = 0 if path.is_symlink() else int(facts.st_mtime)
        found[str(path.relative_to(folder))] = (kind, oct(facts.st_mode & 0o777), time)
    return found


def test_a_tree_comes_back_as_it_was(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"c/a": "a", f"c/d/{ODD}": "odd", "c/tool": "#!", "single": "s", "other": "no"})
    (one / "c/tool").chmod(0o4755)
    (one / "c/empty").mkdir(mode=0o750)
    (one / "c/d/up").symlink_to("../a")
    os.mkfifo(one / "c/pipe")
    os.utime(one / "c/a", (1, 1_600_000_000))
    os.utime(one / "c", (1, 1_600_000_001))
    os.utime(one / "c/d/up", (1, 1_600_000_002), follow_symlinks=False)
    file = packed(one, "c", "single", "missing", "c/d")
    assert restore(file, tmp_path / "two", "c", "single", "missing", "c/d") == []
    (one / "other").unlink()
    (one / "c/pipe").unlink()
    (one / "c/tool").chmod(0o755)
    os.utime(one / "c", (1, 1_600_000_001))
    assert tree(tmp_path / "two") == tree(one)


def test_what_the_clone_has_made_is_left_alone(tmp_path: Path) -> None:
    file = packed(
        make(tmp_path / "one", {"a/x": "new", "b/x": "new", "d/e/x": "new", "f/x": "new"}), "a", "b", "d/e", "f"
    )
    two = make(tmp_path / "two", {"a/x": "old", "d": "a file"})
    (tmp_path / "outside").mkdir()
    (two / "f").symlink_to(tmp_path / "outside")
    said = restore(file, two, "a", "b", "d/e", "f")
    assert said == [
        "a was not restored: it exists already",
        "d/e was not restored: d is no folder (Not a directory)",
        "f was not restored: it exists already",
    ]
    assert (two / "a/x").read_text() == "old"
    assert (two / "b/x").read_text() == "new"
    assert list((tmp_path / "outside").iterdir()) == []


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, target, size
    return found


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("../x"), "has the path"),
        (member("/etc/x"), "has the path"),
        (member("c/../../x"), "has the path"),
        (member("other/x"), "no path of the cache"),
        (member("cc"), "no path of the cache"),
        (member("c/l", tarfile.SYMTYPE, "/etc/passwd"), "leaves the workspace"),
        (member("c/l", tarfile.SYMTYPE, "../../x"), "leaves the workspace"),
        (member("c/l", tarfile.LNKTYPE, "c/ok"), "no file, folder or link"),
        (member("c/l", tarfile.CHRTYPE), "no file, folder or link"),
        (member("c/l", tarfile.FIFOTYPE), "no file, folder or link"),
        (member("c/ok"), "cannot be unpacked"),
        (member("c/ok/below"), "cannot be unpacked"),
        (member("c/huge", size=1 << 40), "too many files or bytes"),
    ],
)
def test_a_bad_member_leaves_the_workspace_as_it_was(tmp_path: Path, bad: tarfile.TarInfo, why: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(member("c/ok"))
        archive.addfile(bad) if not bad.size else archive.fileobj.write(bad.tobuf())
    file.seek(0)
    two = make(tmp_path / "two", {"kept": "kept"})
    before = tree(two)
    with pytest.raises(CacheFault, match=why):
        restore(file, two, "c")
    assert tree(two) == before
    assert not (tmp_path / "x").exists()


def test_a_link_in_the_archive_is_not_followed(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.addfile(member("c/l", tarfile.SYMTYPE, "../kept"))
        archive.addfile(member("c/l/x"))
    file.seek(0)
    two = make(tmp_path / "two", {"kept/y": "kept"})
    with pytest.raises(CacheFault):
        restore(file, two, "c")
    assert [path.name for path in (two / "kept").iterdir()] == ["y"]


@pytest.mark.parametrize("cut", [0, 1, 30, 2000])
def test_a_cut_archive_is_refused(tmp_path: Path, cut: int) -> None:
    data = packed(make(tmp_path / "one", {"c/a": os.urandom(5000).hex()}), "c").getvalue()
    with pytest.raises(CacheFault, match="cannot be read"):
        restore(io.BytesIO(data[:cut]), tmp_path / "two", "c")
    assert list((tmp_path / "two").iterdir()) == []


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_file(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    file = packed(make(tmp_path / "one", {"c/a": "a"}), "c")
    monkeypatch.setattr(cache_archive.Unpacker, "write_file", write_file)
    with pytest.raises(OSError, match="full"):
        restore(file, tmp_path / "two", "c")
    assert list((tmp_path / "two").iterdir()) == []


def test_what_cannot_be_packed_is_said(tmp_path: Path) -> None:
    one = make(tmp_path / "one", {"c/a": os.urandom(5000).hex(), "d/a": ""})
    with pytest.raises(CacheFault, match="more than 2000 bytes"):
        packed(one, "c", limit=2000)
    (one / "d/python").symlink_to("/usr/bin/python3")
    with pytest.raises(CacheFault, match="d/python is a link to /usr/bin/python3, outside the workspace"):
        packed(one, "d")
    (one / "l").symlink_to("c")
    with pytest.raises(NothingToPack):
        pack(str(one), ["missing", "c/a/below", "l/a"], io.BytesIO(), LIMIT)


def test_a_hash_depends_on_paths_content_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(tmp_path / "one", {"a.lock": "1", "d/b.lock": "2", "other": "x", ".git/c.lock": "x"})
    first = hash_files(str(one), ["**/*.lock"])
    assert len(first) == 32
    (one / "other").write_text("y")
    (one / ".git/c.lock").write_text("y")
    assert hash_files(str(one), ["**/*.lock"]) == first
    assert hash_files(str(one), ["a.lock", "d/*.lock"]) == first
    hashes = {first, hash_files(str(one), ["a.lock"])}
    (one / "d/b.lock").rename(one / "d/c.lock")
    hashes.add(hash_files(str(one), ["**/*.lock"]))
    (one / "a.lock").write_text("2")
    hashes.add(hash_files(str(one), ["**/*.lock"]))
    (one / "z.lock").symlink_to("/etc/hostname")
    hashes.add(hash_files(str(one), ["**/*.lock"]))
    assert len(hashes) == 5
    with pytest.raises(CacheFault, match="no file of the workspace matches go"):
        hash_files(str(one), ["go"])
    monkeypatch.setattr(cache_hash, "MAX_HASHED_BYTES", 1)
    with pytest.raises(CacheFault, match="more than 1 bytes"):
        hash_files(str(one), ["**/*.lock"])
