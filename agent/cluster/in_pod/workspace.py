"""Walk a workspace, take its snapshot, and start the commands. Part of the programs of container `helper`.

This module does not run in the agent's process. `packaging` sends its source to the container, together with the
sources of `helper`, `collect_files` and `receive_tree`. It needs Python 3.9 and the standard library only.

The content of the workspace is not trusted. Folders are opened one component at a time and never through a link, and
other file systems are not entered.
"""

from __future__ import annotations

import os
import stat
import time

TYPE_CHECKING = False  # importing `typing` takes longer than the rest of the program
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Entry = tuple[str, str, int, os.stat_result]

READY = "ready"
ORDER_SECONDS = 60  # maximum number of seconds until container `helper` has written the order
MAX_NAME = 4096  # maximum number of bytes of a path, as in `agent.domain.paths`, which cannot be imported here
TOO_LONG = f"a path longer than {MAX_NAME} bytes"
TERMINATION = "/dev/termination-log"
USER = "user"  # file of the log's folder: user and group of the commands, written when the workspace belongs to them
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# id of the clock that the kernel uses for file times; the module `time` has no name for this clock
CLOCK_REALTIME_COARSE = 5


def open_folder(root: int, path: str) -> int:
    """Open PATH below ROOT component by component, so that no link is followed. Return the descriptor."""
    fd = os.dup(root)
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, FOLDER, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def walk(root: int, enter: Callable[[str, str], bool], miss: Callable[[str, str], None]) -> Iterator[Entry]:
    """Yield (path, name, descriptor of the folder, lstat) of everything but folders, sorted by name.

    The descriptor stays open until the next step. `enter` decides whether to enter a folder, by its path and name.
    `miss` receives the path of each unreadable entry and the reason, and of each folder whose path is too long: the
    walk opens a folder component by component, so the time for one folder grows with its depth.
    """
    device = os.fstat(root).st_dev
    folders = [""]
    while folders:
        folder = folders.pop()
        inner = []
        try:
            fd = open_folder(root, folder)
        except OSError as error:
            miss(folder, "unreadable folder: " + os.strerror(error.errno or 0))
            continue
        try:
            with os.scandir(fd) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
            for entry in entries:
                path = folder + "/" + entry.name if folder else entry.name
                try:
                    facts = entry.stat(follow_symlinks=False)
                except OSError as error:
                    miss(path, "unreadable: " + os.strerror(error.errno or 0))
                    continue
                if not stat.S_ISDIR(facts.st_mode):
                    yield path, entry.name, fd, facts
                elif facts.st_dev != device:
                    miss(path, "another file system")
                elif enter(path, entry.name):
                    if len(os.fsencode(path)) > MAX_NAME:
                        miss(path, TOO_LONG)
                    else:
                        inner.append(path)
        finally:
            os.close(fd)
        folders.extend(reversed(inner))


def change_owner(workspace: str, user: int, group: int) -> bool:
    """Make USER the owner of WORKSPACE and of all in it. Return whether any file had another owner.

    Only root can do so. In profile `restricted` all containers have the same user, who owns the clone already.
    """
    try:
        # The kubelet lets every user write to the folder of a volume. Tools such as Ansible refuse such a folder.
        os.chmod(workspace, 0o755)  # noqa: S103 - the mode that `mkdir` gives
        os.chown(workspace, user, group)
    except PermissionError:
        return False
    # The init container cloned the files as this user.
    if (user, group) == (os.geteuid(), os.getegid()):
        return False

    def enter(path: str, _: str) -> bool:
        os.chown(workspace + "/" + path, user, group, follow_symlinks=False)
        return True

    root = os.open(workspace, FOLDER)
    for _, name, folder, _ in walk(root, enter, lambda *_: None):
        os.chown(name, user, group, dir_fd=folder, follow_symlinks=False)
    os.close(root)
    return True


def fingerprint(path: str, facts: os.stat_result) -> bytes:
    """Return a value that differs after any write to the file.

    The value contains the ctime, because `tar x` and `cp -p` set the mtime back, and no program can set the ctime.
    """
    return b"%d %d %d " % (facts.st_ctime_ns, facts.st_size, facts.st_ino) + os.fsencode(path)


def start_commands(workspace: str, snapshot: str, go: str) -> None:
    """Write the snapshot of WORKSPACE to SNAPSHOT, unless SNAPSHOT is "".

    Then start the commands through the FIFO GO.
    """
    if snapshot:
        take_snapshot(workspace, snapshot)
    # The program of an exec can reach this line before container `helper` has written the order. The helper writes the
    # file `setup` last.
    wait_for_path(os.path.join(os.path.dirname(go), "setup"))
    # If this container is killed, its termination message shows the agent that the commands may have begun.
    write_termination(READY)
    send_word(go, "run")


def write_termination(text: str) -> None:
    """Write the termination message of this container, which the agent reads in the status of the pod."""
    try:
        with open(TERMINATION, "r+") as termination:
            termination.write(text)
    except OSError:
        pass  # the program does not run in a container


def wait_for_path(path: str) -> None:
    """Wait until the helper has made PATH. An errand may be faster than the helper."""
    end = time.monotonic() + ORDER_SECONDS
    while not os.path.exists(path):
        if time.monotonic() > end:
            raise TimeoutError(f"container helper has not made {path} in {ORDER_SECONDS} s")
        time.sleep(0.01)


def send_word(path: str, word: str) -> None:
    """Write a word into a FIFO. The helper has the FIFO open, so neither the open nor the write waits."""
    fifo = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    os.write(fifo, word.encode() + b"\n")
    os.close(fifo)


def take_snapshot(workspace: str, snapshot: str) -> None:
    """Write the fingerprints of all files of WORKSPACE to SNAPSHOT, each with a final NUL."""
    newest = 0
    root = os.open(workspace, FOLDER)
    with open(snapshot + ".part", "wb") as out:
        for path, _, _, facts in walk(root, lambda *_: True, lambda *_: None):
            newest = max(newest, facts.st_ctime_ns)
            out.write(fingerprint(path, facts) + b"\0")
    os.close(root)
    os.rename(snapshot + ".part", snapshot)
    # A later change within the same tick of the file system's clock would have the same ctime. Wait for the next tick.
    for _ in range(10):
        if time.clock_gettime_ns(CLOCK_REALTIME_COARSE) > newest:
            break
        time.sleep(0.002)
