"""Records the runs of this machine, and deletes what a killed run left in the cluster.

Each run has a pool of its own, so no other agent sweeps the pods of a killed run. A run therefore keeps a record file
with its pool, and holds a lock on the file. The kernel releases the lock when the process ends, however it ends. A
record without a lock proves that its run is dead. The next run on the same cluster, or `sealci-agent cleanup`, then
deletes the pods of its pool. A run that ended in order has deleted its record.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.cluster.ownership.orphans import CleanupResult, cleanup
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from agent.cluster.api.client import Client

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool of a run. `server`: URL of the API server. `host`: name of the machine on which the run was started."""

    name: str
    namespace: str
    server: str
    host: str


class RunRecord:
    """The record of one run. Owned by the run. If its folder cannot be written, the run continues without a record."""

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self.path: Path | None = None
        self.lock = -1

    def write(self, pool: Pool) -> None:
        """Write the record and lock it, until `remove` or the end of the process."""
        self.pool = pool
        try:
            folder = records_folder()
            folder.mkdir(parents=True, exist_ok=True)
            # The file gets its name after it is locked. Otherwise another run could take it for a dead run's record.
            self.lock, partial = tempfile.mkstemp(dir=folder)
            os.write(self.lock, json.dumps([pool.name, pool.namespace, pool.server, pool.host]).encode())
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            self.path = Path(partial).rename(folder / f"{pool.name}.json")
        except (OSError, RuntimeError) as error:
            log.info("the run could not be recorded", error=str(error))

    def remove(self) -> None:
        """Delete the record, because the run left nothing in the cluster."""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


def records_folder() -> Path:
    """Return the folder of the records of this user's runs."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path("~/.local/state").expanduser()) / "sealci-agent" / "runs"


def this_machine() -> str:
    return socket.gethostname()


def dead_runs(server: str) -> Iterator[tuple[Pool, Path]]:
    """Yield the pool of each run of this machine that was killed, with the path of the run's record file.

    `server` is the address of the cluster of these runs.

    The caller holds the lock of a record until it asks for the next record, so that no other process cleans up the same
    pool.
    """
    try:
        paths = sorted(records_folder().glob("run-*.json"))
    except (OSError, RuntimeError):
        return  # The user has no home folder.
    for path in paths:
        try:
            with path.open("rb") as file:
                # On a network file system, the lock of another machine may not be visible. So the host is compared too.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                pool = Pool(*json.loads(file.read()))
                if (pool.server, pool.host) == (server, this_machine()):
                    yield pool, path
        except (OSError, ValueError, TypeError):
            continue  # The run is alive, its record was just deleted, or the file is no record.


async def delete_killed_runs(client: Client, *, dry_run: bool = False) -> AsyncGenerator[tuple[Pool, CleanupResult]]:
    """Delete what killed runs of this machine left in the cluster. Yields each pool in which something was left.

    With `dry_run`, nothing is deleted.
    """
    for pool, path in dead_runs(client.api.configuration.host):
        try:
            result = await cleanup(client, pool.namespace, pool.name, leases=False, dry_run=dry_run)
        except ClusterError as error:
            log.info("the pods of a killed run could not be listed", pool=pool.name, error=error.message)
            continue
        if not result.failed and not dry_run:
            path.unlink(missing_ok=True)
        if result.pods or result.failed:
            yield pool, result
