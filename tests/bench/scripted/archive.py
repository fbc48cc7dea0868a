"""The output of the collector (the program that copies files out of a pod) for one file of zeros.

This module builds the output in memory, so that the benchmark needs no disk.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

from agent.cluster.in_pod.files.collect_files import MANIFEST_TYPE, header, manifest_line, pad_to_block

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME, MODE = "made.bin", 0o644
BLOCK = 256 * 1024


@cache
def digest(size: int) -> str:
    """Return the sha256 of `size` zero bytes."""
    found, block = sha256(), bytes(BLOCK)
    for at in range(0, size, BLOCK):
        found.update(block[: min(BLOCK, size - at)])
    return found.hexdigest()


def archive(size: int) -> Iterator[bytes]:
    """Yield the collector's archive of one file of `size` zero bytes, in blocks."""
    yield header(NAME.encode(), MODE, size, 0)
    block = bytes(BLOCK)
    for at in range(0, size, BLOCK):
        yield block[: min(BLOCK, size - at)]
    text = (manifest_line("file", NAME, size, MODE, digest(size)) + manifest_line("end", 1, size, 0)).encode("ascii")
    tail = header(b"sealci-manifest", 0o644, len(text), 0, MANIFEST_TYPE) + pad_to_block(text)
    yield bytes(-size % 512) + tail + bytes(1024)
