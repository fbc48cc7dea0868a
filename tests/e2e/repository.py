"""A small git repository that pods can clone, for tests that need a clone but do not test cloning."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from deploy.demo import source
from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def repository(folder: Path) -> Iterator[str]:
    """Serve a git repository whose only commit has the file `file`. Yield the repository's URL."""
    work = folder / "work"
    work.mkdir()
    (work / "file").write_text("cloned\n")
    source.git(work, "init", "--quiet", "--initial-branch=main", ".")
    source.git(work, "add", "--all")
    source.git(work, "commit", "--quiet", "--message", "first")
    source.git(folder, "clone", "--quiet", "--bare", str(work), str(folder / "r.git"))
    with source.serve_git(folder, kube.provider("address")) as url:
        yield f"{url}/r.git"
