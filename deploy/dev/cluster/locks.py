"""Serialise commands that change the same cache or the same cluster, such as two test runs that start together."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.dev.cluster.console import report


@contextmanager
def lock(path: Path, other: str) -> Iterator[None]:
    """Hold the lock file `path` while the `with` block runs.

    If another process holds the lock, report this and wait. `other` describes the other process in the report. The
    kernel releases the lock when the process that holds it dies. The file stays, because a process that waits for a
    deleted file would not exclude a process that creates the file anew.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"  waiting for {other} to end ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
