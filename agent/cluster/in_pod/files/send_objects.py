"""Put the wanted files straight into an object store. The program runs in container `helper`, as `collect_files` does.

The agent signs the URLs, and no byte of a file passes through the agent. The program writes lines of JSON to stdout:
the files of a batch with their hashes (`want`), what was stored (`stored`), and at last the manifest, whose lines are
JSON arrays as in `collect_files`. Stdin has one line for each `want`: the requests for each part of each file
(`grants`), and the CA of the store (`ca`).

A file is read twice: for its hash, and for the upload. The hash is a signed header, so the store itself refuses other
bytes. A file that changes meanwhile is left out, or fails the collection if the action declares it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import sys
import threading
import time
from hashlib import sha256
from urllib.parse import urlsplit

from agent.cluster.in_pod.files.collect_files import ALARM_SECONDS, Collector, DeclaredFileMissing, Output, manifest_line
from agent.cluster.in_pod.files.collect_files import shorten as shorten_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

BATCH_FILES = 30  # maximum number of files of one batch, so that URLs are fresh
BATCH_BYTES = 1 << 30  # number of bytes after which a batch ends
PART_BYTES = 64 << 20  # a file above this size is put in parts of this size
MAX_PARTS = 10_000
READ_BYTES = 256 << 10  # number of bytes of one read
CONNECTIONS = 8  # number of requests at the same time
TRIES = 5  # number of tries for one part
REQUEST_SECONDS = 60.0  # seconds without progress after which a request fails
LINE_BYTES = 16 << 20  # maximum number of bytes of a line of grants


class StoreUnavailable(Exception):
    """The store does not take a part, for a reason that the message states."""


class Part:
    """A part of a file: its place, its hash, and the ETag when it is stored."""

    def __init__(self, wanted: Wanted, offset: int, size: int, digest: str) -> None:
        self.wanted, self.offset, self.size, self.digest = wanted, offset, size, digest
        self.request: dict[str, Any] = {}
        self.etag = ""
        self.error = ""
        self.refused = False  # the store refuses these bytes, or this URL


class Wanted:
    """A file to put: its path, its open descriptor, its facts and its hashes."""

    def __init__(self, path: str, file: int, facts: os.stat_result) -> None:
        self.path, self.file, self.facts = path, file, facts
        size = max(PART_BYTES, -(-facts.st_size // MAX_PARTS))
        whole, self.parts = sha256(), []
        for offset in range(0, max(facts.st_size, 1), size):
            length = min(size, facts.st_size - offset)
            digest = sha256()
            for data in read_part(file, offset, length):
                digest.update(data)
                whole.update(data)
            self.parts.append(Part(self, offset, length, digest.hexdigest()))
        self.digest = whole.hexdigest()

    def unchanged(self) -> bool:
        now = os.fstat(self.file)
        names = ("st_size", "st_mtime_ns", "st_ctime_ns")
        return all(getattr(now, name) == getattr(self.facts, name) for name in names)

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


def read_part(file: int, offset: int, size: int):  # type: ignore[no-untyped-def]
    """Yield SIZE bytes of FILE from OFFSET on. Bytes that are missing at the end are zeros."""
    end = offset + size
    while offset < end:
        data = os.pread(file, min(READ_BYTES, end - offset), offset) or bytes(min(READ_BYTES, end - offset))
        offset += len(data)
        yield data


class ObjectSender(Collector):
    """Collects files as `Collector` does, and puts them into the store instead of an archive."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stdin: BinaryIO = sys.stdin.buffer
        self.batch: list[Wanted] = []
        self.batch_bytes = 0
        self.local = threading.local()
        self.context: ssl.SSLContext | None = None

    def send_file(self, path: str, file: int, facts: os.stat_result) -> None:
        """Add the file to the batch. `Collector` closes FILE afterwards, so the batch keeps a copy."""
        self.batch.append(Wanted(path, os.dup(file), facts))
        self.batch_bytes += facts.st_size
        self.files += 1
        self.bytes += facts.st_size
        if len(self.batch) >= BATCH_FILES or self.batch_bytes >= BATCH_BYTES:
            self.send_batch()

    def send_manifest(self, exceeded: tuple[str, str] | None) -> None:
        """Send the last batch, unless the collection has failed, and then the manifest."""
        if exceeded is None:
            try:
                self.send_batch()
            except DeclaredFileMissing as error:
                exceeded = error.args
        lines = [manifest_line("left", *each) for each in (self.left_out + self.left_out_by_default)[:100]]
        for index in sorted(self.unmatched):
            lines.append(manifest_line("unmatched", self.paths[index]))
            if index in self.links:
                lines.append(manifest_line("link", shorten_path(self.links[index])))
        if exceeded:
            lines.append(manifest_line("exceeded", *exceeded))
        lines.append(manifest_line("end", self.files, self.bytes, self.left_out_count))
        self.out.write("".join(lines).encode("ascii"))

    def write_line(self, value: object) -> None:
        self.out.write(json.dumps(value).encode() + b"\n")
        self.out.flush()

    def send_batch(self) -> None:
        """Ask for grants, put all parts of the batch, and report what was stored."""
        batch, self.batch, self.batch_bytes = self.batch, [], 0
        if not batch:
            return
        try:
            for _ in range(3):
                # Grants that have expired in the middle of a long batch are asked again.
                parts = [part for wanted in batch for part in wanted.parts if not part.etag]
                if not parts:
                    break
                self.ask(batch)
                self.put_all(parts)
                if any(part.error and not part.refused for part in parts):
                    break
            self.report(batch)
        finally:
            for wanted in batch:
                os.close(wanted.file)

    def ask(self, batch: list[Wanted]) -> None:
        self.write_line({"want": [wanted.question(number) for number, wanted in enumerate(batch)]})
        line = self.stdin.readline(LINE_BYTES)
        if not line.endswith(b"\n"):
            raise StoreUnavailable("the agent has closed the connection")
        answer = json.loads(line)
        if answer.get("ca") and self.context is None:
            self.context = ssl.create_default_context(cadata=answer["ca"])
        for wanted, requests in zip(batch, answer["grants"]):  # noqa: B905 - new in Python 3.10
            for part, request in zip(wanted.parts, requests):  # noqa: B905 - new in Python 3.10
                part.request = request

    def put_all(self, parts: list[Part]) -> None:
        """Put all parts, with several connections at the same time."""
        left = list(reversed(parts))
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    if not left:
                        return
                    part = left.pop()
                self.put_part(part)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(CONNECTIONS, len(parts)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def put_part(self, part: Part) -> None:
        """Put a part, with retries. The result is in the part."""
        for attempt in range(TRIES):
            part.error, part.refused = "", False
            try:
                status, etag, body = self.put(part)
            except (OSError, http.client.HTTPException) as error:
                part.error = f"{type(error).__name__}: {error}"
                self.local.connection = None
            else:
                if status == 200:
                    part.etag = etag
                    return
                part.error = f"HTTP {status} {body[:300].decode('utf-8', 'replace')}"
                if status < 500 and status not in (408, 425, 429):
                    part.refused = status in (400, 403)
                    return
            if time.monotonic() > self.end:
                return
            time.sleep(min(5.0, 0.2 * 2**attempt))

    def put(self, part: Part) -> tuple[int, str, bytes]:
        """Send one request. Return the status, the ETag and the body of the answer."""
        url = urlsplit(part.request["url"])
        connection = self.connect(url.scheme, url.netloc)
        connection.putrequest("PUT", f"{url.path}?{url.query}", skip_accept_encoding=True)
        for name, value in part.request["headers"].items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(part.size))
        connection.endheaders()
        for data in read_part(part.wanted.file, part.offset, part.size):
            connection.send(data)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("ETag", "").strip('"'), answer.read(64 << 10)

    def connect(self, scheme: str, host: str) -> http.client.HTTPConnection:
        """Return this thread's connection to the store. It is opened at the first use and after an error."""
        connection: http.client.HTTPConnection | None = getattr(self.local, "connection", None)
        if connection is None:
            if scheme == "https":
                context = self.context or ssl.create_default_context()
                connection = http.client.HTTPSConnection(host, timeout=REQUEST_SECONDS, context=context)
            else:
                connection = http.client.HTTPConnection(host, timeout=REQUEST_SECONDS)
            self.local.connection = connection
        return connection

    def report(self, batch: list[Wanted]) -> None:
        """Report the stored files. Leave out those that changed, and give up if the store does not take the others."""
        stored = []
        for number, wanted in enumerate(batch):
            failed = [part.error for part in wanted.parts if not part.etag]
            if not failed and wanted.unchanged():
                stored.append({"id": number, "etags": [part.etag for part in wanted.parts]})
                continue
            self.files -= 1
            self.bytes -= wanted.facts.st_size
            if wanted.unchanged():
                raise StoreUnavailable(f"{wanted.path}: {failed[0]}")
            self.exceed(wanted.path, "changed while it was read")
        self.write_line({"stored": stored})


def main(arguments: list[str]) -> None:
    """Run with the arguments WORKSPACE SNAPSHOT, LIMITS (see `Collector`), the NUMBER of paths, paths, excludes."""
    workspace, snapshot, *numbers = arguments[:7]
    *limits, number = [int(limit) for limit in numbers]
    signal.alarm(limits[3] + ALARM_SECONDS)
    paths, exclude = arguments[7 : 7 + number], arguments[7 + number :]
    old: set[bytes] = set()
    if not paths:
        with open(snapshot, "rb") as file:
            old.update(file.read().split(b"\0"))
    sender = ObjectSender(Output(1), limits, paths, exclude, old)
    try:
        sender.run(workspace)
    except StoreUnavailable as error:
        sender.write_line({"unavailable": str(error)})
