"""Read files from an object store, several at the same time. Part of the program `receive_inputs`.

`packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import contextlib
import http.client
import os
import queue
import ssl
import threading
import time
from hashlib import sha256
from urllib.parse import urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CONNECTIONS = 8  # number of files that are read from the object store at the same time
WAITING = 64  # maximum number of files that wait for a connection, so that their URLs are fresh
TRIES = 5  # number of tries for one file
REQUEST_SECONDS = 60.0  # seconds without progress after which a request fails
GONE = (404, 410)
PIECE_BYTES = 256 * 1024  # number of bytes of one read


class Refused(Exception):
    """The files cannot be written. The first argument is the kind of the error, the second one is for people."""


class Downloads:
    """Reads the files of one program.

    RECEIVE writes a file, given its temporary name, its header and a reader. ALIVE is called about once a second while
    the program waits for the store.
    """

    def __init__(self, receive: Callable[..., None], alive: Callable[[], object]) -> None:
        self.receive = receive
        self.alive = alive
        self.trust: ssl.SSLContext | None = None
        self.threads: list[threading.Thread] = []
        self.waiting: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue(WAITING)
        self.failures: list[Refused] = []

    def use_ca(self, certificates: str) -> None:
        """Trust these PEM certificates in place of the CAs of the system."""
        self.trust = ssl.create_default_context(cadata=certificates)

    def add(self, name: str, header: dict[str, Any]) -> None:
        """Give a file to the threads that read from the object store. Wait while too many files wait."""
        if len(self.threads) < CONNECTIONS:
            thread = threading.Thread(target=self.download_all, daemon=True)
            self.threads.append(thread)
            thread.start()
        self.put((name, header))

    def put(self, item: tuple[str, dict[str, Any]] | None) -> None:
        """Add a file, or the end, to those that wait. Raise the failure of an earlier file."""
        while True:
            self.raise_failure()
            try:
                return self.waiting.put(item, timeout=1.0)
            except queue.Full:
                self.alive()

    def finish(self) -> None:
        """Wait for all files."""
        for _ in self.threads:
            self.put(None)
        for thread in self.threads:
            while thread.is_alive():
                thread.join(1.0)
                self.alive()
        self.raise_failure()

    def raise_failure(self) -> None:
        if self.failures:
            raise self.failures[0]

    def download_all(self) -> None:
        """Read files until there are no more. This is the body of a thread. After a failure, files are skipped."""
        while True:
            item = self.waiting.get()
            if item is None:
                return
            if self.failures:
                continue
            try:
                self.receive(*item, self.download)
            except Refused as error:
                self.failures.append(error)
            except OSError as error:
                self.failures.append(Refused("broken", os.strerror(error.errno or 0)))

    def download(self, file: int, header: dict[str, Any]) -> str:
        """Read a file from the object store into FILE, with retries. Return its SHA-256."""
        why = ""
        for attempt in range(TRIES):
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            try:
                status, digest = self.get(file, header)
            except (OSError, http.client.HTTPException) as error:
                why = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    return digest
                if status in GONE:
                    raise Refused("missing", f"{header['path']} is no longer in the object store (HTTP {status})")
                why = f"HTTP {status}"
                if status < 500 and status not in (408, 425, 429):
                    break
            time.sleep(min(5.0, 0.2 * 2**attempt))
        raise Refused("store", f"{header['path']}: {why}")

    def get(self, file: int, header: dict[str, Any]) -> tuple[int, str]:
        """Send one request. Return the status and the SHA-256 of the bytes that were written to FILE."""
        url = urlsplit(header["url"])
        if url.scheme == "https":
            trust = self.trust or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.netloc, timeout=REQUEST_SECONDS, context=trust
            )
        else:
            connection = http.client.HTTPConnection(url.netloc, timeout=REQUEST_SECONDS)
        digest, left = sha256(), header["size"]
        with contextlib.closing(connection):
            connection.request("GET", f"{url.path}?{url.query}", headers={"Accept-Encoding": "identity"})
            answer = connection.getresponse()
            while answer.status == 200 and left:
                data = answer.read(min(left, PIECE_BYTES))
                if not data:
                    raise http.client.IncompleteRead(b"", left)
                digest.update(data)
                write_whole(file, data)
                left -= len(data)
            return answer.status, digest.hexdigest()


def write_whole(file: int, data: bytes) -> None:
    """Write all bytes of DATA to FILE. `os.write` alone may write fewer."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
