"""The objects that `send_objects` puts: large files, and packs of small files.

`packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import os
import threading
from hashlib import sha256

from agent.cluster.in_pod.objects.file_records import encode_records
from agent.cluster.in_pod.objects.store_client import CONNECTIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from agent.cluster.in_pod.objects.file_records import FileRecord

PART_BYTES = 64 << 20  # a file above this size is put in parts of this size
MAX_PARTS = 10_000
READ_BYTES = 256 << 10  # number of bytes of one read
PACKED_BYTES = 256 << 10  # a file above this size is an object of its own
PACK_BYTES = 8 << 20  # maximum number of bytes of a pack, which the program keeps in memory
PACK_FILES = 1024  # maximum number of files of a pack
PACK_PATH_BYTES = 1 << 20  # maximum number of bytes of the paths of a pack


class Part:
    """A part of a file: its place, its hash, and the ETag when it is stored."""

    def __init__(self, wanted: Wanted | WantedPack, offset: int, size: int, digest: str = "") -> None:
        self.wanted, self.offset, self.size = wanted, offset, size
        self.digest = digest
        self.request: dict[str, Any] = {}
        self.stored = False
        self.sent = 0  # number of bytes of the last try that were sent
        self.etag = ""
        self.error = ""
        self.refused = False  # the store refuses these bytes, or this URL

    def hash(self) -> None:
        self.digest = hash_of(self.pieces())

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes of the part."""
        return self.wanted.pieces(self.offset, self.size)


class Wanted:
    """A file to put as an object of its own: its path, its open descriptor, its facts and its hashes."""

    files = 1

    def __init__(self, path: str, file: int, facts: os.stat_result) -> None:
        self.path, self.file, self.facts, self.bytes = path, file, facts, facts.st_size
        size = max(PART_BYTES, -(-facts.st_size // MAX_PARTS))
        starts = range(0, max(facts.st_size, 1), size)
        self.parts = [Part(self, offset, min(size, facts.st_size - offset)) for offset in starts]
        if len(self.parts) == 1:
            self.parts[0].hash()
            self.digest = self.parts[0].digest
            return
        threads = start_threads(Part.hash, self.parts)
        self.digest = hash_of(self.pieces(0, facts.st_size))
        for thread in threads:
            thread.join()

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        return read_part(self.file, offset, size)

    def unchanged(self) -> bool:
        return unchanged(self.file, self.facts)

    def question(self, number: int) -> dict[str, object]:
        """Return what the agent needs to know about the file. NUMBER is its place in the batch."""
        return {
            "id": number,
            "path": self.path,
            "mode": self.facts.st_mode & 0o777,
            "size": self.facts.st_size,
            "sha256": self.digest,
            "parts": [part.digest for part in self.parts],
        }

    def table(self) -> bytes:
        return b""

    def close(self) -> None:
        os.close(self.file)


class WantedPack:
    """Small files to put as one object. DATA has their bytes. A single file is an object with the name of the file."""

    def __init__(self, records: list[FileRecord], data: bytes) -> None:
        self.records, self.data = records, data
        self.files, self.bytes, self.path = len(records), len(data), records[0][0]
        self.digest = sha256(data).hexdigest()
        self.parts = [Part(self, 0, len(data), self.digest)]

    def pieces(self, offset: int, size: int) -> Iterator[bytes]:
        for at in range(offset, offset + size, READ_BYTES):
            yield self.data[at : min(at + READ_BYTES, offset + size)]

    def unchanged(self) -> bool:
        return True

    def question(self, number: int) -> dict[str, object]:
        """Return what the agent needs to know about the files. NUMBER is the place of the object in the batch."""
        facts: dict[str, object] = {"id": number, "size": self.bytes, "sha256": self.digest, "parts": [self.digest]}
        if self.files == 1:
            return {**facts, "path": self.path, "mode": self.records[0][1]}
        return facts

    def table(self) -> bytes:
        """Return the short form of the files, b"" for a single file."""
        return encode_records(self.records) if self.files > 1 else b""

    def close(self) -> None:
        self.data = b""


def unchanged(file: int, facts: os.stat_result) -> bool:
    """Return whether a file is as it was when it had these FACTS."""
    now = os.fstat(file)
    return all(getattr(now, name) == getattr(facts, name) for name in ("st_size", "st_mtime_ns", "st_ctime_ns"))


def read_part(file: int, offset: int, size: int) -> Iterator[bytes]:
    """Yield SIZE bytes of FILE from OFFSET on. Bytes that are missing at the end are zeros."""
    end = offset + size
    while offset < end:
        data = os.pread(file, min(READ_BYTES, end - offset), offset) or bytes(min(READ_BYTES, end - offset))
        offset += len(data)
        yield data


def hash_of(pieces: Iterable[bytes]) -> str:
    digest = sha256()
    for data in pieces:
        digest.update(data)
    return digest.hexdigest()


def start_threads(act: Callable[[Part], None], parts: list[Part]) -> list[threading.Thread]:
    """Call ACT for each part in its turn, in several threads. Return the threads, which end by themselves."""
    left = list(reversed(parts))

    def work() -> None:
        while True:
            try:
                part = left.pop()  # one step of the interpreter, so no lock is needed
            except IndexError:
                return
            act(part)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(CONNECTIONS, len(parts)))]
    for thread in threads:
        thread.start()
    return threads


class Pack:
    """Files that wait until they are put as one object. Keeps their bytes, at most `PACK_BYTES`."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.records: list[FileRecord] = []
        self.path_bytes = 0

    def has_room(self, size: int) -> bool:
        """Return whether one more file of SIZE bytes fits."""
        full = len(self.records) >= PACK_FILES or self.path_bytes >= PACK_PATH_BYTES
        return not full and len(self.data) + size <= PACK_BYTES

    def add(self, path: str, mode: int, content: bytes) -> None:
        self.records.append((path, mode, len(content), sha256(content).digest(), len(self.data)))
        self.data += content
        self.path_bytes += len(os.fsencode(path))
