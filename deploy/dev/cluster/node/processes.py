"""Find and kill the node's processes.

A node is found by the command lines below /proc and not by a file with its pid, because such a file could be older than
a reboot. Only two processes of a node have the script node_init.py and the cluster's folder as their last arguments:
`unshare` and PID 1 of the node. A pidfd is opened before the command line is checked, so that no signal reaches another
process with a reused pid.
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
# Ends of the path of node_init.py. The start of the path is not compared, because a command can end a cluster that
# another clone of the repository started. In older clones, the script was deploy/cluster/node.py.
SCRIPTS = ("/deploy/dev/cluster/node/node_init.py", "/deploy/cluster/node.py")
# Seconds until a killed process must be gone.
KILL_SECONDS = 20.0


def arguments(pid: int) -> list[str]:
    """Return the words of a process' command line. The list is empty if the process is a zombie or does not exist."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.split("\0")[:-1]


def is_node(pid: int, folder: Path) -> bool:
    """Return whether the process is PID 1 of this cluster's node, or the process `unshare` that has started PID 1."""
    words = arguments(pid)[-2:]
    return len(words) == 2 and words[0].endswith(SCRIPTS) and words[1] == str(folder)


def node_pids(folder: Path) -> list[int]:
    """Return the pids of the two processes by which a node is found: `unshare` and PID 1.

    The list is empty if the node of the cluster in `folder` does not run.
    """
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and is_node(int(entry), folder)]


def init_pid(folder: Path) -> int | None:
    """Return the pid, on this machine, of the node's PID 1. Return None if the node does not run."""
    inner = [pid for pid in node_pids(folder) if arguments(pid)[0] != "unshare"]
    return inner[0] if inner else None


def kill_node(folder: Path) -> None:
    """Kill this cluster's node and wait until it is gone. The kernel then kills all processes in its namespaces."""
    for pid in node_pids(folder):
        with open_pidfd(pid) as handle:
            if handle is None or not is_node(pid, folder):
                continue
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            if not select.select([handle], [], [], KILL_SECONDS)[0]:
                raise CommandFailed(f"the node's process {pid} was killed and did not end within {KILL_SECONDS:.0f} s")


@contextmanager
def open_pidfd(pid: int) -> Iterator[int | None]:
    """Yield a pidfd of the process, or None if the process does not exist."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)
