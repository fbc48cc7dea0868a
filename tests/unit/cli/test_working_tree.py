"""The working tree of this machine as a tar: what git would commit, and what `.gitignore` says elsewhere."""

from __future__ import annotations

import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from agent.cli.working_tree import WorkingTreeError, pack

if TYPE_CHECKING:
    from pathlib import Path


def packed(root: Path, archive: Path) -> dict[str, tarfile.TarInfo]:
    count, size = pack(root, archive)
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert (count, size) == (len(members), sum(member.size for member in members.values()))
    return members


def filled(root: Path) -> None:
    for name in ("a", "x.log", "keep.log", "build/out", "sub/b", "sub/y.tmp", "sub/build/c"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("*.log\n!keep.log\n/build/\n")
    (root / "sub" / ".gitignore").write_text("*.tmp\n")
    (root / "link").symlink_to("nowhere")


KEPT = {".gitignore", "a", "keep.log", "link", "sub/.gitignore", "sub/b", "sub/build/c"}


def test_a_folder_without_git_honours_its_ignore_files(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    filled(root)
    (root / "sub" / "folder-link").symlink_to("build")
    assert set(packed(root, tmp_path / "t.tar")) == {*KEPT, "sub/folder-link"}


def test_a_git_tree_is_what_git_says(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    filled(root)
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / ".git" / "info" / "exclude").write_text("a\n")
    (root / "x.log").write_text("forced")
    subprocess.run(["git", "-C", root, "add", "-f", "x.log", "sub/b"], check=True)
    (root / "sub" / "b").unlink()
    assert set(packed(root, tmp_path / "t.tar")) == (KEPT | {"x.log"}) - {"a", "sub/b"}
    assert set(packed(root / "sub", tmp_path / "s.tar")) == {".gitignore", "build/c"}


def test_repositories_within_are_entered(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "f").write_text("f")
    (root / "g").write_text("g")
    for folder in (root, root / "inner"):
        subprocess.run(["git", "init", "-q", folder], check=True)
    assert set(packed(root, tmp_path / "t.tar")) == {"g", "inner/f"}


def test_any_user_of_the_image_can_change_the_files(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    for name, mode in (("plain", 0o600), ("program", 0o750)):
        (root / name).write_text(name)
        (root / name).chmod(mode)
    os.mkfifo(root / "pipe")
    members = packed_files(root, tmp_path / "t.tar")
    assert {name: member.mode for name, member in members.items()} == {"plain": 0o666, "program": 0o777}
    assert all((member.uid, member.gid, member.uname) == (0, 0, "") for member in members.values())


def packed_files(root: Path, archive: Path) -> dict[str, tarfile.TarInfo]:
    pack(root, archive)
    with tarfile.open(archive) as tar:
        return {member.name: member for member in tar.getmembers()}


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorkingTreeError, match="is not a folder"):
        pack(tmp_path / "missing", tmp_path / "t.tar")
