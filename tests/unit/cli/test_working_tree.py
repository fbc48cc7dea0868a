"""The tar archive of a working tree.

In a git repository, the archive holds the files that git would commit. Elsewhere it holds the files that no
`.gitignore` excludes.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from agent.cli.working_tree import WorkingTreeError, fingerprint, pack

if TYPE_CHECKING:
    from pathlib import Path


def pack_and_check(root: Path, archive: Path) -> dict[str, tarfile.TarInfo]:
    count, size = pack(root, archive)
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar.getmembers()}
    assert (count, size) == (len(members), sum(member.size for member in members.values()))
    return members


def write_files(root: Path) -> None:
    for name in ("a", "x.log", "keep.log", "build/out", "sub/b", "sub/y.tmp", "sub/build/c"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / ".gitignore").write_text("*.log\n!keep.log\n/build/\n")
    (root / "sub" / ".gitignore").write_text("*.tmp\n")
    (root / "link").symlink_to("nowhere")


EXPECTED = {".gitignore", "a", "keep.log", "link", "sub/.gitignore", "sub/b", "sub/build/c"}


def test_ignore_files_count_in_a_folder_without_git(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write_files(root)
    (root / "sub" / "folder-link").symlink_to("build")
    assert set(pack_and_check(root, tmp_path / "t.tar")) == {*EXPECTED, "sub/folder-link"}


def test_git_decides_which_files_belong_to_a_git_tree(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    write_files(root)
    subprocess.run(["git", "init", "-q", root], check=True)
    (root / ".git" / "info" / "exclude").write_text("a\n")
    (root / "x.log").write_text("forced")
    subprocess.run(["git", "-C", root, "add", "-f", "x.log", "sub/b"], check=True)
    (root / "sub" / "b").unlink()
    assert set(pack_and_check(root, tmp_path / "t.tar")) == (EXPECTED | {"x.log"}) - {"a", "sub/b"}
    assert set(pack_and_check(root / "sub", tmp_path / "s.tar")) == {".gitignore", "build/c"}


def test_files_of_inner_repositories_are_included(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "f").write_text("f")
    (root / "g").write_text("g")
    for folder in (root, root / "inner"):
        subprocess.run(["git", "init", "-q", folder], check=True)
    assert set(pack_and_check(root, tmp_path / "t.tar")) == {"g", "inner/f"}


def test_any_user_of_the_image_can_change_the_files(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    for name, mode in (("plain", 0o600), ("program", 0o750)):
        (root / name).write_text(name)
        (root / name).chmod(mode)
    os.mkfifo(root / "pipe")
    members = pack_and_list(root, tmp_path / "t.tar")
    assert {name: member.mode for name, member in members.items()} == {"plain": 0o666, "program": 0o777}
    assert all((member.uid, member.gid, member.uname) == (0, 0, "") for member in members.values())


def pack_and_list(root: Path, archive: Path) -> dict[str, tarfile.TarInfo]:
    pack(root, archive)
    with tarfile.open(archive) as tar:
        return {member.name: member for member in tar.getmembers()}


def test_a_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkingTreeError, match="is not a folder"):
        pack(tmp_path / "missing", tmp_path / "t.tar")


@pytest.fixture
def tree_with_program(tmp_path: Path) -> tuple[Path, Path]:
    """Return a git tree and a file. The tree's setting core.fsmonitor names a program that would create the file."""
    root, proof = tmp_path / "tree", tmp_path / "proof"
    write_files(root)
    subprocess.run(["git", "init", "-q", root], check=True)
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {proof}\n")
    program.chmod(0o755)
    subprocess.run(["git", "-C", root, "config", "core.fsmonitor", str(program)], check=True)
    return root, proof


def test_the_configuration_of_a_tree_starts_no_program(tree_with_program: tuple[Path, Path], tmp_path: Path) -> None:
    root, proof = tree_with_program
    pack(root, tmp_path / "t.tar")
    assert not proof.exists()


def test_git_refuses_a_tree_of_another_user(tree_with_program: tuple[Path, Path], tmp_path: Path) -> None:
    root, proof = tree_with_program
    for path in (root, root / ".git"):
        os.chown(path, 12345, 12345)
    for folder in (root, root / "sub"):
        with pytest.raises(WorkingTreeError, match="dubious ownership"):
            pack(folder, tmp_path / "t.tar")
    assert not proof.exists()


def test_variables_of_git_select_no_other_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = tmp_path / "tree", tmp_path / "other"
    write_files(root)
    for folder in (root, other):
        subprocess.run(["git", "init", "-q", folder], check=True)
    (other / "x.log").write_text("tracked in the other tree")
    subprocess.run(["git", "-C", other, "add", "-f", "x.log"], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert set(pack_and_check(root, tmp_path / "t.tar")) == EXPECTED


def test_the_fingerprint_follows_every_file_that_would_be_packed(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("ignored\n")
    (tmp_path / "out").mkdir()
    seen = [fingerprint(tmp_path, [tmp_path / "out"])]
    for name, counts in (("ignored", False), ("new", True), ("out/artifact", False), ("new", True)):
        with (tmp_path / name).open("a") as file:
            file.write("more")
        seen.append(fingerprint(tmp_path, [tmp_path / "out"]))
        assert (seen[-1] != seen[-2]) is counts, name
    (tmp_path / "new").unlink()
    assert fingerprint(tmp_path, [tmp_path / "out"]) != seen[-1]
