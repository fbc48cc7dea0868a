"""The program that puts a tree of another machine into the workspace: a tar from stdin, as it comes.

Like `workspace` it runs inside container `files`; its source is the argument of the exec that runs it. The archive was
made by whoever runs the action, on a machine of theirs. What it leaves is what a clone would have left: the snapshot
is taken after it, and only then may the commands begin.
"""

from __future__ import annotations

import os
import sys
import tarfile

from agent.cluster.in_pod.workspace import let_begin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


class Exactly:
    """So many bytes of a stream and no more: the end of an exec's stdin is never told."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream = stream
        self.left = size

    def read(self, size: int) -> bytes:
        """Return up to SIZE bytes, none at the end."""
        data = self.stream.read(min(size, self.left))
        self.left -= len(data)
        return data


def main(arguments: list[str]) -> None:
    """Take WORKSPACE SNAPSHOT READY SIZE."""
    workspace, snapshot, ready, size = arguments
    os.umask(0)
    source = Exactly(sys.stdin.buffer, int(size))
    with tarfile.open(fileobj=source, mode="r|") as archive:  # type: ignore[call-overload]
        # Pythons that know filters would refuse links that lead out of the tree: they are kept as they are.
        archive.extraction_filter = lambda member, _: member
        archive.extractall(workspace)  # noqa: S202 - it is the person's own tree
    while source.read(1 << 16):
        pass
    let_begin(workspace, snapshot, ready)
