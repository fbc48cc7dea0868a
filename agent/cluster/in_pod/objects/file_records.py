"""The short form in which lists of files of the object store cross the API server.

A list of files is a compressed table, and the SHA-256 of each file. So a file costs about 40 bytes. Both the agent and
the programs in the pod use this module. `packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import json
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    # The path, the mode, the size, the SHA-256, and the position of the first byte in the object.
    FileRecord = tuple[str, int, int, bytes, int]

TABLE_BYTES = 8 << 20  # maximum number of bytes of a table: JSON has up to six characters for a byte of a path
DIGEST_BYTES = 32


def encode_records(records: list[FileRecord]) -> bytes:
    """Return the short form of RECORDS, which follow each other in their object. The form has no line feed."""
    gaps, end = [], 0
    for _, _, size, _, start in records:
        gaps.append(start - end)
        end = start + size
    table = [[each[0] for each in records], [each[1] for each in records], [each[2] for each in records], gaps]
    digests = b"".join([each[3] for each in records])
    packed = zlib.compress(json.dumps(table, separators=(",", ":")).encode())
    return (packed + digests).replace(b"=", b"=e").replace(b"\n", b"=n")


def decode_records(line: bytes) -> list[FileRecord]:
    """Return the records that `encode_records` has turned into this line.

    Raises:
        ValueError: the line is no short form, or the table is too large.
    """
    unpacker = zlib.decompressobj()
    try:
        table = unpacker.decompress(line.replace(b"=n", b"\n").replace(b"=e", b"="), TABLE_BYTES)
    except zlib.error as error:
        raise ValueError(f"a table of files is broken: {error}") from error
    if not unpacker.eof:
        raise ValueError("a table of files is too large, or cut")
    hashes = unpacker.unused_data
    paths, modes, sizes, gaps = json.loads(table)
    if not len(paths) == len(modes) == len(sizes) == len(gaps) or len(hashes) != DIGEST_BYTES * len(paths):
        raise ValueError("the columns of a table of files differ in length")
    records, end = [], 0
    for number, path in enumerate(paths):
        mode, size, gap = int(modes[number]), int(sizes[number]), int(gaps[number])
        if size < 0 or gap < 0:
            raise ValueError("a table of files has a negative number")
        digest = hashes[DIGEST_BYTES * number : DIGEST_BYTES * (number + 1)]
        records.append((str(path), mode, size, digest, end + gap))
        end += gap + size
    return records
