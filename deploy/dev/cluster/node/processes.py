"""The processes of a local cluster, found by what they are and not by a pid file that may have outlived them.

The node's two outer processes are the only ones whose last arguments are such a script and this cluster's folder. A
signal goes through a pidfd that was opened before that was checked, so it never meets a stranger with a reused pid.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed

NODE_SCRIPT = Path(__file__).resolve().with_name("node_init.py")
# Of whatever checkout: the cluster is known by its folder, so that any clone can take it down.
# The second place is of older checkouts, whose cluster may still run.
SCRIPTS = ("/deploy/dev/cluster/node/node_init.py", "/deploy/cluster/node.py")
END_SECONDS = 20.0


def arguments(pid: int) -> list[str]:
    """The command line of a process; empty for a zombie or one that is gone."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.split("\0")[:-1]


def is_node(pid: int, folder: Path) -> bool:
    """Whether the process is PID 1 of this cluster's node, or the `unshare` around it."""
    words = arguments(pid)[-2:]
    return len(words) == 2 and words[0].endswith(SCRIPTS) and words[1] == str(folder)


def of_node(folder: Path) -> list[int]:
    """Pids of this cluster's node: none when it does not run."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and is_node(int(entry), folder)]


def first_of_node(folder: Path) -> int | None:
    """The pid, on this machine, of the node's PID 1."""
    inner = [pid for pid in of_node(folder) if arguments(pid)[0] != "unshare"]
    return inner[0] if inner else None


def end_node(folder: Path) -> None:
    """Kills this cluster's node, which takes all its containers along, and waits until it is gone."""
    for pid in of_node(folder):
        with opened(pid) as handle:
            if handle is None or not is_node(pid, folder):
                continue
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            if not select.select([handle], [], [], END_SECONDS)[0]:
                raise CommandFailed(f"the node's process {pid} was killed and did not end within {END_SECONDS:.0f} s")


@contextmanager
def opened(pid: int) -> Iterator[int | None]:
    """A pidfd of the process; None when it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)
