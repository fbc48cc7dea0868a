"""Unpack a tar from stdin into the workspace, then let the commands begin. The program runs in container `helper`.

An exec runs this program once per environment. The exec has the program's source as an argument. The tar is the working
tree of the person who runs the action. As after a clone, the snapshot is taken when the tree is complete.
"""

from __future__ import annotations

import os
import sys
import tarfile

from agent.cluster.in_pod.workspace import send_word, start_commands, wait_for_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


class LimitedReader:
    """Reads a given number of bytes from a stream. An exec's stdin has no end, so the size marks the end."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.left = size

    def read(self, size: int) -> bytes:
        """Return at most SIZE bytes; b"" after the given number of bytes."""
        data = self.stream.read(min(size, self.left))
        self.left -= len(data)
        return data


def main(arguments: list[str]) -> None:
    """Run with the arguments WORKSPACE SNAPSHOT GO SIZE: GO is the FIFO that starts the commands, "" to start none.

    SIZE is the number of bytes of the tar. If SNAPSHOT is "", GO is the FIFO of the helper's gate, and the helper takes
    the snapshot and starts the commands when the services are ready.
    """
    workspace, snapshot, go, size = arguments
    # The image of the action may run as any user, and that user must be able to write all files.
    os.umask(0)
    source = LimitedReader(sys.stdin.buffer, int(size))
    with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
        # The default filter of newer Pythons refuses links that leave the tree. The tree belongs to the person who runs
        # the action, so such links are harmless.
        archive.extraction_filter = lambda member, _: member
        archive.extractall(workspace)  # noqa: S202 - it is the person's own tree
    # `tarfile` stops at the end marker. The sender still writes the padding that follows the end marker.
    while source.read(1 << 16):
        pass
    if snapshot:
        start_commands(workspace, snapshot, go)
    elif go:
        wait_for_path(go)
        send_word(go, "tree")
