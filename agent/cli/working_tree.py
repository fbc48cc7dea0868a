"""Pack the working tree of this machine into a tar, for `run --repo`, and notice its changes, for `run --watch`.

The tar holds the files that a commit of all changes would hold. In a git tree, git lists the files, so that every kind
of ignore rule counts. Outside a git tree, this module reads the `.gitignore` files. `.git` is left out, because its
configuration may hold credentials. The command creates the tar once for each run, in a private folder, and deletes it
at the end.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pathspec

from agent.domain.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Seconds between two checks of the watched files with `--watch`.
WATCH_SECONDS = 0.3
# Seconds that git has to answer.
GIT_SECONDS = 120.0
# The configuration of a git tree can name programs that git starts even when it only lists files. With these options
# git starts none of them.
SAFE_OPTIONS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


class WorkingTreeError(AgentError):
    """The working tree cannot be packed."""


def pack(root: Path, archive: Path) -> tuple[int, int]:
    """Write the tar of the folder `root` to `archive`. Returns the number of files and their total size in bytes.

    Raises:
        WorkingTreeError: `root` is not a folder, or a file cannot be read.
    """
    if not root.is_dir():
        raise WorkingTreeError(f"--repo: {root} is not a folder")
    files = total = 0
    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(git_files(root) if in_git(root) else other_files(root)):
            try:
                size = add(tar, root, path)
            except FileNotFoundError:
                continue  # git lists a tracked file until its deletion is committed.
            except OSError as error:
                raise WorkingTreeError(f"--repo: {path} cannot be read: {error.strerror}") from error
            files, total = files + 1, total + size
    return files, total


def fingerprint(root: Path, left_out: Sequence[Path] = ()) -> int:
    """Return a number that differs after each change of the files that `pack` would pack.

    Files at and below the paths `left_out` do not count. Returns 0 if the tree cannot be listed.
    """
    skipped = [os.path.abspath(path) for path in left_out]
    state = []
    try:
        for path in sorted(git_files(root) if in_git(root) else other_files(root)):
            full = os.path.abspath(root / path)
            if any(full == each or full.startswith(f"{each}/") for each in skipped):
                continue
            with contextlib.suppress(OSError):
                status = os.lstat(full)
                state.append((path, status.st_mtime_ns, status.st_size, status.st_mode, status.st_ino))
    except WorkingTreeError:
        return 0
    return hash(tuple(state))


def file_fingerprint(file: Path) -> tuple[int, ...]:
    """Return numbers that differ after each change of a file. Returns () while the file is missing."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def wait_for_change(state: Callable[[], tuple[int, ...]], before: tuple[int, ...]) -> None:
    """Wait until `state` differs from `before`, and then until it stays the same for `WATCH_SECONDS`."""
    # Editors replace files, which would end a watch by inotify. Therefore the loop compares fingerprints.
    while (now := state()) == before:
        time.sleep(WATCH_SECONDS)
    while True:
        time.sleep(WATCH_SECONDS)
        later = state()
        if later == now:
            return
        now = later


def add(tar: tarfile.TarFile, root: Path, path: str) -> int:
    """Add one file and return its size in bytes. Devices, sockets and pipes are left out."""
    full = root / path
    status = full.lstat()
    member = tarfile.TarInfo(path)
    member.mtime = int(status.st_mtime)
    if stat.S_ISLNK(status.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(full)
        tar.addfile(member)
        return 0
    if not stat.S_ISREG(status.st_mode):
        return 0
    # The user that the image runs as is not known, and must be able to read and change the file.
    member.mode = 0o777 if status.st_mode & 0o100 else 0o666
    with full.open("rb") as file:
        member.size = os.fstat(file.fileno()).st_size
        tar.addfile(member, file)
    return member.size


def in_git(root: Path) -> bool:
    """Return whether git is installed and the folder lies in the working tree of a git repository.

    Raises:
        WorkingTreeError: git finds a repository and refuses it, for example because another user owns it.
    """
    try:
        answer = git(root, "rev-parse", "--is-inside-work-tree")
    except FileNotFoundError:
        return False
    words = answer.stderr.decode("utf-8", "replace").strip()
    if answer.returncode and "not a git repository" not in words:
        raise WorkingTreeError(f"--repo: git refuses {root}: {words}")
    return answer.returncode == 0 and answer.stdout.strip() == b"true"


def git_files(root: Path) -> set[str]:
    """Return the tracked files below a folder and the files that `git add` would add, submodules included."""
    answer = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if answer.returncode:
        raise WorkingTreeError(f"--repo: git ls-files in {root}: {answer.stderr.decode('utf-8', 'replace').strip()}")
    found = {os.fsdecode(name) for name in answer.stdout.split(b"\0") if name}
    inner = {name.rstrip("/") for name in found if (root / name).is_dir() and not (root / name).is_symlink()}
    for folder in inner:
        # For a submodule or another nested repository, git lists only the folder and not its files.
        found |= (
            {f"{folder}/{name}" for name in git_files(root / folder)} if (root / folder / ".git").exists() else set()
        )
    return {name for name in found if name.rstrip("/") not in inner}


def git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in a folder, and return its exit code and output."""
    # Git refuses the tree of another user, and no option here turns this check off. The configuration of such a tree
    # could start programs with the rights of the user who runs this command.
    command = ["git", *SAFE_OPTIONS, "-C", str(root), *arguments]
    # Variables such as GIT_DIR would select another repository. With LC_ALL=C git's
    # messages are in English, as `in_git` expects.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {"LC_ALL": "C"}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkingTreeError(f"--repo: git in {root} did not answer within {GIT_SECONDS:g} s") from error


def other_files(root: Path) -> Iterator[str]:
    """Yield the files below a folder that no `.gitignore` in this folder or below ignores."""
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
    """Return whether a path is ignored. `rules` has the outermost folder first.

    If several rules match, the rule of the innermost folder counts.
    """
    for prefix, spec in reversed(rules):
        if path.startswith(prefix):
            verdict = spec.check_file(path.removeprefix(prefix)).include
            if verdict is not None:
                return verdict
    return False
