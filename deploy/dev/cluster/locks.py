"""Locks between commands that share the cache or a cluster."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.dev.cluster.console import report


@contextmanager
def lock(path: Path, who: str) -> Iterator[None]:
    """Holds a lock file; says so when it has to wait for `who`. The kernel frees it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"  waiting for {who} to end ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
