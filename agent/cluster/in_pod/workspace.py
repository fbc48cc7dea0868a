"""What lies in a workspace, seen from inside container `files`.

Not part of the agent's own process: `payload` sends the source of this module, of `globs` and of `collector` to the
container, where nothing is needed but Python 3.9 and its standard library; so the agent's version and the image's never
have to agree. `main` is PID 1 of the container and lives as long as files may be wanted: it notes what the clone left,
says that it is ready, and waits.

Whoever filled the workspace is not trusted: folders are entered one component at a time and never through a link, and
nothing is entered that lies on another file system.
"""

from __future__ import annotations

import os
import signal
import stat
import time

TYPE_CHECKING = False  # typing costs more than all that runs here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Entry = tuple[str, str, int, os.stat_result]

READY = "ready"
TERMINATION = "/dev/termination-log"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
CLOCK_REALTIME_COARSE = 5


def open_folder(root: int, path: str) -> int:
    """Open PATH below ROOT component by component, so that no link on the way is followed."""
    fd = os.dup(root)
    for name in path.split("/") if path else ():
        try:
            below = os.open(name, FOLDER, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def walk(root: int, enter: Callable[[str, str], bool], miss: Callable[[str, str], None]) -> Iterator[Entry]:
    """Yield (path, name, descriptor of its folder, lstat) of all but folders, in the order of names.

    The descriptor is open until the next step. `miss` is told what could not be seen.
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
                    inner.append(path)
        finally:
            os.close(fd)
        folders.extend(reversed(inner))


def trace(path: str, facts: os.stat_result) -> bytes:
    """Return what tells a file that was touched: `tar x` and `cp -p` set the mtime back, nothing sets the ctime."""
    return b"%d %d %d " % (facts.st_ctime_ns, facts.st_size, facts.st_ino) + os.fsencode(path)


def hold(workspace: str, snapshot: str, ready: str, seconds: float) -> None:
    """Write SNAPSHOT of WORKSPACE, create READY, and wait for TERM, at most SECONDS; READY "" is left to `filler`."""
    end = time.monotonic() + seconds
    # PID 1 has no default action for TERM, and inherits orphans that nobody else would reap.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if ready:
        let_begin(workspace, snapshot, ready)
    time.sleep(max(0.0, end - time.monotonic()))


def let_begin(workspace: str, snapshot: str, ready: str) -> None:
    """Write SNAPSHOT of WORKSPACE, then create READY, for which the commands wait."""
    take_snapshot(workspace, snapshot)
    # Whoever reads of our end knows by this whether the commands can have begun.
    try:
        with open(TERMINATION, "r+") as termination:
            termination.write(READY)
    except OSError:
        pass  # not in a container
    os.close(os.open(ready, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))


def take_snapshot(workspace: str, snapshot: str) -> None:
    """Write the traces of all files of WORKSPACE to SNAPSHOT, separated by NUL."""
    newest = 0
    root = os.open(workspace, FOLDER)
    with open(snapshot + ".part", "wb") as out:
        for path, _, _, facts in walk(root, lambda *_: True, lambda *_: None):
            newest = max(newest, facts.st_ctime_ns)
            out.write(trace(path, facts) + b"\0")
    os.close(root)
    os.rename(snapshot + ".part", snapshot)
    # A change within the same tick of the file system's clock would leave the same ctime: let the tick pass.
    for _ in range(10):
        if time.clock_gettime_ns(CLOCK_REALTIME_COARSE) > newest:
            break
        time.sleep(0.002)


def main(arguments: list[str]) -> None:
    """Take WORKSPACE SNAPSHOT READY SECONDS."""
    workspace, snapshot, ready, seconds = arguments
    hold(workspace, snapshot, ready, float(seconds))
