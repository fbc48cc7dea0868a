"""Let only one errand at a time write into the workspace. Part of the programs `receive_inputs` and `caches`.

An errand may outlive the agent that has started it. A later errand ends the older errand, and removes its files.
So nothing but the commands writes into the workspace when the commands begin. `packaging` sends this source to the pod
(Python 3.9, standard library).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal

from agent.cluster.in_pod.workspace import wait_for_path

# Names of files in the log's folder. `DONE` appears when all files are in the workspace, before the commands begin.
LOCK, DONE = "inputs.lock", "inputs.done"


class Lock:
    """The right to write into the workspace, which one run has at a time.

    The file names the run and its temporary folder.
    """

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def take(self) -> None:
        """Take the lock from a run that still works, and remove what earlier runs have left."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # The older run waits for bytes of an agent that has lost this pod.
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(self.read()[0]), signal.SIGKILL)
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        remove_folder(self.read()[1])

    def read(self) -> tuple[str, str]:
        """Return the process number and the temporary folder of the last run."""
        number, _, folder = os.pread(self.fd, 8192, 0).decode("utf-8", "surrogateescape").partition(" ")
        return number, folder

    def write(self, folder: str) -> None:
        data = f"{os.getpid()} {folder}".encode("utf-8", "surrogateescape")
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)


def remove_folder(path: str) -> None:
    """Remove the folder PATH with all in it, if it exists."""
    if path and os.path.isdir(path):
        import shutil  # costs some milliseconds, and most errands leave no folder

        shutil.rmtree(path)


def read_user(path: str) -> tuple[int, int] | None:
    """Return user and group of the commands from the file PATH, for which it waits; None if they are not known."""
    wait_for_path(path)
    with open(path) as file:
        words = file.read().split()
    return (int(words[0]), int(words[1])) if len(words) == 2 else None
