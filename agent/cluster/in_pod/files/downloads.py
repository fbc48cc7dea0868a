"""Read files from an object store, several at the same time. Part of the program `receive_inputs`.

`packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import http.client
import os
import queue
import ssl
import threading
import time
from hashlib import sha256

from agent.cluster.in_pod.files.store_client import (
    ANSWER_BYTES,
    CONNECTIONS,
    REQUEST_SECONDS,
    STORE_ERRORS,
    SUCCESS,
    TRIES,
    StoreClient,
    explain,
    may_pass,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WAITING = 64  # maximum number of files that wait for a connection, so that their URLs are fresh
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
        client = StoreClient(self.trust)

        def copy(file: int, header: dict[str, Any]) -> str:
            return self.download(client, file, header)

        while (item := self.waiting.get()) is not None:
            if self.failures:
                continue
            try:
                self.receive(*item, copy)
            except Refused as error:
                self.failures.append(error)
            except OSError as error:
                self.failures.append(Refused("broken", os.strerror(error.errno or 0)))
        client.close()

    def download(self, client: StoreClient, file: int, header: dict[str, Any]) -> str:
        """Read a file from the object store into FILE, with retries. Return its SHA-256.

        A file with another SHA-256 than its header names is read a second time: bytes can change on their way.
        """
        why, found = "", ""
        for attempt in range(TRIES):
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            try:
                answer = client.request("GET", header["url"], {"Accept-Encoding": "identity"}, REQUEST_SECONDS)
                if answer.status == SUCCESS:
                    before, found = found, receive_body(answer, file, header["size"])
                    if before or found == header["sha256"]:
                        return found
                    continue
                why = explain(answer, answer.read(ANSWER_BYTES), header["url"])
            except STORE_ERRORS as error:
                why = f"{type(error).__name__}: {error}"
                client.close()
            else:
                client.close()
                if answer.status in GONE and "NoSuchBucket" not in why:
                    raise Refused("missing", f"{header['path']} is no longer in the object store ({why})")
                if not may_pass(answer.status):
                    break
            time.sleep(min(5.0, 0.2 * 2**attempt))
        raise Refused("store", f"{header['path']}: {why}")


def receive_body(answer: http.client.HTTPResponse, file: int, size: int) -> str:
    """Write the SIZE bytes of an answer to FILE. Return their SHA-256."""
    digest, left = sha256(), size
    while left:
        data = answer.read(min(left, PIECE_BYTES))
        if not data:
            raise http.client.IncompleteRead(b"", left)
        digest.update(data)
        write_whole(file, data)
        left -= len(data)
    answer.read()
    return digest.hexdigest()


def write_whole(file: int, data: bytes) -> None:
    """Write all bytes of DATA to FILE. `os.write` alone may write fewer."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
