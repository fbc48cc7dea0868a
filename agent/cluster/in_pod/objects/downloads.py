"""Read files from an object store, several at the same time. Part of the program `receive_inputs`.

One request reads one span: files that follow each other in one object. After a break, the next request begins at the
first file that is not complete.

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

from agent.cluster.in_pod.objects.store_client import (
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

WAITING = 64  # maximum number of spans that wait for a connection, so that their URLs are fresh
GAP_BYTES = 128 * 1024  # a span goes on over unwanted bytes up to this number: reading them is cheaper than a request
PARTIAL = 206
GONE = (404, 410)
PIECE_BYTES = 256 * 1024  # number of bytes of one read


class Refused(Exception):
    """The files cannot be written. The first argument is the kind of the error, the second one is for people."""


class Cut(Exception):
    """The store has broken off an answer. The argument is for people."""


class Span:
    """Files that follow each other in one object, each a temporary name and a header. The header has `start`.

    The first DONE files are complete.
    """

    def __init__(self, url: str, files: list[tuple[str, dict[str, Any]]]) -> None:
        self.url, self.files, self.done = url, files, 0
        self.wrong = -1  # number of the file that had a wrong hash when it was read

    @property
    def start(self) -> int:
        """Return the place of the first byte that is not read yet."""
        start: int = self.files[self.done][1]["start"]
        return start

    @property
    def end(self) -> int:
        last = self.files[-1][1]
        end: int = last["start"] + last["size"]
        return end

    @property
    def path(self) -> str:
        """Return the path of the first file that is not complete."""
        return str(self.files[self.done][1]["path"])


def spans_of(url: str, files: list[tuple[str, dict[str, Any]]]) -> list[Span]:
    """Return the requests that read FILES of one object. The files are in the order of their bytes."""
    found: list[Span] = []
    for each in files:
        if found and each[1]["start"] - found[-1].end <= GAP_BYTES:
            found[-1].files.append(each)
        else:
            found.append(Span(url, [each]))
    return found


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
        self.waiting: queue.Queue[Span | None] = queue.Queue(WAITING)
        self.failures: list[Refused] = []

    def use_ca(self, certificates: str) -> None:
        """Trust these PEM certificates in place of the CAs of the system."""
        self.trust = ssl.create_default_context(cadata=certificates)

    def add(self, span: Span) -> None:
        """Give a span to the threads that read from the object store. Wait while too many spans wait."""
        if len(self.threads) < CONNECTIONS:
            thread = threading.Thread(target=self.download_all, daemon=True)
            self.threads.append(thread)
            thread.start()
        self.put(span)

    def put(self, item: Span | None) -> None:
        """Add a span, or the end, to those that wait. Raise the failure of an earlier span."""
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
        """Read spans until there are no more. This is the body of a thread. After a failure, spans are skipped."""
        client = StoreClient(self.trust)
        while (span := self.waiting.get()) is not None:
            if self.failures:
                continue
            try:
                self.read_span(client, span)
            except Refused as error:
                self.failures.append(error)
            except OSError as error:
                self.failures.append(Refused("broken", os.strerror(error.errno or 0)))
        client.close()

    def read_span(self, client: StoreClient, span: Span) -> None:
        if span.start == span.end:  # only empty files
            self.receive_all(span, lambda _: b"", span.start)
            return

        def headers() -> dict[str, str]:
            return {"Range": f"bytes={span.start}-{span.end - 1}"}

        def use(answer: http.client.HTTPResponse) -> None:
            # Some stores ignore the range and send the whole object.
            self.receive_all(span, reader(answer), span.start if answer.status == PARTIAL else 0)
            if not answer.isclosed():
                client.close()

        get_object(client, span.url, lambda: span.path, headers, use)

    def receive_all(self, span: Span, read: Callable[[int], bytes], position: int) -> None:
        """Receive the files of a span. READ returns the next bytes of the object, whose first is at POSITION."""
        while span.done < len(span.files):
            name, header = span.files[span.done]
            while position < header["start"]:
                position += len(read(min(header["start"] - position, PIECE_BYTES)))
            try:
                self.receive(name, header, lambda file, header: receive_body(read, file, header["size"]))
            except Refused as error:
                # Bytes can change on their way, so the file is read a second time.
                if error.args[0] != "digest" or span.wrong == span.done:
                    raise
                span.wrong = span.done
                raise Cut(error.args[1]) from error
            position += header["size"]
            span.done += 1

    def download(
        self, client: StoreClient, file: int, header: dict[str, Any], progress: Callable[[int], object]
    ) -> str:
        """Read a whole object into FILE, with retries. Return its SHA-256.

        An object with another SHA-256 than its header names is read a second time: bytes can change on their way.
        PROGRESS is called with the number of bytes that the last request has read so far.
        """
        found: list[str] = []

        def use(answer: http.client.HTTPResponse) -> str:
            os.ftruncate(file, 0)
            os.lseek(file, 0, os.SEEK_SET)
            read = reader(answer)

            def counted(size: int) -> bytes:
                data = read(size)
                progress(os.lseek(file, 0, os.SEEK_CUR) + len(data))
                return data

            digest = receive_body(counted, file, header["size"])
            if not answer.isclosed():
                client.close()
            found.append(digest)
            if digest != header["sha256"] and len(found) == 1:
                raise Cut("the content has another sha256")
            return digest

        return str(get_object(client, header["url"], lambda: header["path"], dict, use))


def get_object(
    client: StoreClient,
    url: str,
    path: Callable[[], str],
    headers: Callable[[], dict[str, str]],
    use: Callable[[http.client.HTTPResponse], object],
) -> object:
    """Send a request for an object, with retries, and return what USE makes of the answer.

    PATH is for the messages of errors. PATH and HEADERS are asked again for each try.
    """
    why = ""
    for attempt in range(TRIES):
        try:
            answer = client.request("GET", url, {"Accept-Encoding": "identity", **headers()}, REQUEST_SECONDS)
            body = b"" if answer.status in (SUCCESS, PARTIAL) else answer.read(ANSWER_BYTES)
        except STORE_ERRORS as error:
            why = f"{type(error).__name__}: {error}"
        else:
            if answer.status in (SUCCESS, PARTIAL):
                try:
                    return use(answer)
                except Cut as error:
                    why = str(error)
            else:
                why = explain(answer, body, url)
                if answer.status in GONE and "NoSuchBucket" not in why:
                    raise Refused("missing", f"{path()} is no longer in the object store ({why})")
                if not may_pass(answer.status):
                    break
        client.close()
        time.sleep(min(5.0, 0.2 * 2**attempt))
    client.close()
    raise Refused("store", f"{path()}: {why}")


def reader(answer: http.client.HTTPResponse) -> Callable[[int], bytes]:
    """Return a function that reads up to that many bytes of an answer, at least one. It raises `Cut`."""

    def read(size: int) -> bytes:
        try:
            data = answer.read(size)
        except STORE_ERRORS as error:
            raise Cut(f"{type(error).__name__}: {error}") from error
        if not data:
            raise Cut(f"the answer ended {size} bytes too early")
        return data

    return read


def receive_body(read: Callable[[int], bytes], file: int, size: int) -> str:
    """Write SIZE bytes, which READ returns, to FILE. Return their SHA-256."""
    digest, left = sha256(), size
    while left:
        data = read(min(left, PIECE_BYTES))
        digest.update(data)
        write_whole(file, data)
        left -= len(data)
    return digest.hexdigest()


def write_whole(file: int, data: bytes) -> None:
    """Write all bytes of DATA to FILE. `os.write` alone may write fewer."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
