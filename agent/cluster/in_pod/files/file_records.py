"""The short form in which lists of files of the object store cross the API server.

A list of files is a compressed table, and the SHA-256 of each file. So a file costs about 50 bytes. Both the agent and
the programs in the pod use this module. `packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import json
import zlib
from binascii import a2b_base64, b2a_base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    # The path, the mode, the size, the SHA-256, and the position of the first byte in the object.
    FileRecord = tuple[str, int, int, bytes, int]

TABLE_BYTES = 8 << 20  # maximum number of bytes of a table: JSON has up to six characters for a byte of a path
DIGEST_BYTES = 32


def encode_records(records: list[FileRecord]) -> dict[str, str]:
    """Return the short form of RECORDS, which follow each other in their object."""
    gaps, end = [], 0
    for _, _, size, _, start in records:
        gaps.append(start - end)
        end = start + size
    table = [[each[0] for each in records], [each[1] for each in records], [each[2] for each in records], gaps]
    packed = zlib.compress(json.dumps(table, separators=(",", ":")).encode())
    digests = b"".join([each[3] for each in records])
    return {"files": to_base64(packed), "digests": to_base64(digests)}


def to_base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def decode_records(files: str, digests: str) -> list[FileRecord]:
    """Return the records that `encode_records` has turned into these texts.

    Raises:
        ValueError: the texts are no short form, or the table is too large.
    """
    hashes = a2b_base64(digests)
    unpacker = zlib.decompressobj()
    try:
        table = unpacker.decompress(a2b_base64(files), TABLE_BYTES)
    except zlib.error as error:
        raise ValueError(f"a table of files is broken: {error}") from error
    if not unpacker.eof:
        raise ValueError("a table of files is too large, or cut")
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
