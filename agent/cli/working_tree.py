"""The working tree of this machine as one tar: what a commit of everything would hold, whether it is committed or not.

In a git tree git itself says which files those are, so every kind of ignore rule counts. Elsewhere the `.gitignore`
files are read here. `.git` stays behind: its configuration may hold credentials. The tar is made once for a run and
lives as long as that, in its private folder.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pathspec

from agent.domain.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 120.0


class TreeWrong(AgentError):
    """The tree cannot be had."""


def pack(root: Path, archive: Path) -> tuple[int, int]:
    """Write the tar of a tree; returns how many files it has, and their bytes.

    Raises:
        TreeWrong: it is no folder, or cannot be read.
    """
    if not root.is_dir():
        raise TreeWrong(f"--repo: {root} is not a folder")
    files = total = 0
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(git_files(root) if in_git(root) else other_files(root)):
            try:
                size = add(tar, root, path)
            except FileNotFoundError:
                continue  # deleted, and not yet committed so
            except OSError as error:
                raise TreeWrong(f"--repo: {path} cannot be read: {error.strerror}") from error
            files, total = files + 1, total + size
    return files, total


def add(tar: tarfile.TarFile, root: Path, path: str) -> int:
    """Add one file, such that whatever user the image has can read and change it; returns its bytes."""
    full = root / path
    facts = full.lstat()
    member = tarfile.TarInfo(path)
    member.mtime = int(facts.st_mtime)
    if stat.S_ISLNK(facts.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(full)
        tar.addfile(member)
        return 0
    if not stat.S_ISREG(facts.st_mode):
        return 0
    member.mode = 0o777 if facts.st_mode & 0o100 else 0o666
    with full.open("rb") as file:
        member.size = os.fstat(file.fileno()).st_size
        tar.addfile(member, file)
    return member.size


def in_git(root: Path) -> bool:
    """Whether the folder lies in the working tree of a git repository."""
    try:
        answer = git(root, "rev-parse", "--is-inside-work-tree")
    except FileNotFoundError:
        return False
    return answer.returncode == 0 and answer.stdout.strip() == b"true"


def git_files(root: Path) -> set[str]:
    """Return what git knows below the folder, and what it would add: not what is ignored. Submodules are entered."""
    answer = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if answer.returncode:
        raise TreeWrong(f"--repo: git ls-files in {root}: {answer.stderr.decode('utf-8', 'replace').strip()}")
    found = {os.fsdecode(name) for name in answer.stdout.split(b"\0") if name}
    inner = {name.rstrip("/") for name in found if (root / name).is_dir() and not (root / name).is_symlink()}
    for folder in inner:
        # A submodule, or a repository within: git names its folder only.
        found |= (
            {f"{folder}/{name}" for name in git_files(root / folder)} if (root / folder / ".git").exists() else set()
        )
    return {name for name in found if name.rstrip("/") not in inner}


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder."""
    # The tree is the person's own, whoever owns its files.
    command = ["git", "-c", "safe.directory=*", "-C", str(root), *arguments]
    try:
        return subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise TreeWrong(f"--repo: git in {root} did not answer within {SECONDS:g} s") from error


def other_files(root: Path) -> Iterator[str]:
    """Yield the files of a folder that no `.gitignore` in it ignores."""
    rules: list[tuple[str, pathspec.GitIgnoreSpec]] = []
    for folder, folders, names in os.walk(root):
        here = Path(folder).relative_to(root).as_posix()
        prefix = "" if here == "." else f"{here}/"
        if ".gitignore" in names:
            lines = (Path(folder) / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
            rules.append((prefix, pathspec.GitIgnoreSpec.from_lines(lines)))
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = [
            name for name in folders if name != ".git" and name not in links and not ignored(f"{prefix}{name}/", rules)
        ]
        yield from (f"{prefix}{name}" for name in (*names, *links) if not ignored(f"{prefix}{name}", rules))


def ignored(path: str, rules: list[tuple[str, pathspec.GitIgnoreSpec]]) -> bool:
    """Whether a path is ignored: the rules of the innermost folder that says anything about it count."""
    for prefix, spec in reversed(rules):
        if path.startswith(prefix):
            verdict = spec.check_file(path.removeprefix(prefix)).include
            if verdict is not None:
                return verdict
    return False
