"""Put the wanted files straight into an object store. The program runs in container `helper`, as `collect_files` does.

The agent signs the URLs, and no byte of a file passes through the agent. The program writes lines of JSON to stdout:
the files of a batch with their hashes (`want`), what was stored (`stored`), and at last the manifest, whose lines are
JSON arrays as in `collect_files`. Stdin has one line for each `want`: the requests for each part of each file
(`grants`), and the CA of the store (`ca`).

A file is read twice: for its hash, and for the upload. The hash is a signed header, so the store itself refuses other
bytes. A file that changes meanwhile is left out, or fails the collection if the action declares it.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import threading
import time
from hashlib import sha256

from agent.cluster.in_pod.files.collect_files import (
    ALARM_SECONDS,
    Collector,
    DeclaredFileMissing,
    Output,
    manifest_line,
    shorten,
)
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
    from collections.abc import Callable, Iterator
    from typing import Any, BinaryIO

BATCH_FILES = 30  # maximum number of files of one batch, so that URLs are fresh
BATCH_BYTES = 1 << 30  # number of bytes after which a batch ends
PART_BYTES = 64 << 20  # a file above this size is put in parts of this size
MAX_PARTS = 10_000
READ_BYTES = 256 << 10  # number of bytes of one read
IDLE_ROUNDS = 3  # number of times that grants are asked again although no part was stored with the last ones
LINE_BYTES = 16 << 20  # maximum number of bytes of a line of grants


class StoreUnavailable(Exception):
    """The store does not take a part, for a reason that the message states."""


class Part:
    """A part of a file: its place, its hash, and the ETag when it is stored."""

    def __init__(self, wanted: Wanted, offset: int, size: int) -> None:
        self.wanted, self.offset, self.size = wanted, offset, size
        self.digest = ""
        self.request: dict[str, Any] = {}
        self.stored = False
        self.etag = ""
        self.error = ""
        self.refused = False  # the store refuses these bytes, or this URL

    def hash(self) -> None:
        self.digest = hash_of(self.wanted.file, self.offset, self.size)


class Wanted:
    """A file to put: its path, its open descriptor, its facts and its hashes."""

    def __init__(self, path: str, file: int, facts: os.stat_result) -> None:
        self.path, self.file, self.facts = path, file, facts
        size = max(PART_BYTES, -(-facts.st_size // MAX_PARTS))
        starts = range(0, max(facts.st_size, 1), size)
        self.parts = [Part(self, offset, min(size, facts.st_size - offset)) for offset in starts]
        if len(self.parts) == 1:
            self.parts[0].hash()
            self.digest = self.parts[0].digest
            return
        threads = start_threads(Part.hash, self.parts)
        self.digest = hash_of(file, 0, facts.st_size)
        for thread in threads:
            thread.join()

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


def read_part(file: int, offset: int, size: int) -> Iterator[bytes]:
    """Yield SIZE bytes of FILE from OFFSET on. Bytes that are missing at the end are zeros."""
    end = offset + size
    while offset < end:
        data = os.pread(file, min(READ_BYTES, end - offset), offset) or bytes(min(READ_BYTES, end - offset))
        offset += len(data)
        yield data


def hash_of(file: int, offset: int, size: int) -> str:
    digest = sha256()
    for data in read_part(file, offset, size):
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


class ObjectSender(Collector):
    """Collects files as `Collector` does, and puts them into the store instead of an archive."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stdin: BinaryIO = sys.stdin.buffer
        self.batch: list[Wanted] = []
        self.batch_bytes = 0
        self.idle: list[StoreClient] = []  # connections that no thread uses
        self.context: ssl.SSLContext | None = None
        self.broken = threading.Event()  # a part has failed for good, so no further request is of use

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
                lines.append(manifest_line("link", shorten(self.links[index])))
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
            idle = 0
            parts = [part for wanted in batch for part in wanted.parts]
            # Grants that have expired in the middle of a long batch are asked again.
            while parts and idle < IDLE_ROUNDS and not self.broken.is_set():
                self.ask(batch)
                self.put_all(parts)
                left = [part for part in parts if not part.stored]
                idle, parts = (idle + 1 if len(left) == len(parts) else 0), left
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
        for thread in start_threads(self.put_part, parts):
            thread.join()

    def put_part(self, part: Part) -> None:
        """Put a part, with retries. The result is in the part."""
        try:
            client = self.idle.pop()
        except IndexError:
            client = StoreClient(self.context)
        for attempt in range(0 if self.broken.is_set() else TRIES):
            part.error, part.refused = "", False
            try:
                status = self.put(client, part)
            except STORE_ERRORS as error:
                part.error = f"{type(error).__name__}: {error}"
                client.close()
            else:
                if status == SUCCESS:
                    break
                if not may_pass(status):
                    part.refused = status in (400, 403)
                    break
            pause = min(5.0, 0.2 * 2**attempt)
            if time.monotonic() + pause > self.end:
                break
            time.sleep(pause)
        if not part.stored and not part.refused:
            self.broken.set()
        self.idle.append(client)

    def put(self, client: StoreClient, part: Part) -> int:
        """Send one request, and keep the ETag or the error in the part. Return the status."""
        url, headers = part.request["url"], {**part.request["headers"], "Content-Length": str(part.size)}
        seconds = max(1.0, min(REQUEST_SECONDS, self.end - time.monotonic()))
        answer = client.request("PUT", url, headers, seconds, self.timely(part))
        body = answer.read(ANSWER_BYTES)
        if answer.status == SUCCESS:
            part.stored, part.etag = True, answer.headers.get("ETag", "").strip('"')
        else:
            part.error = explain(answer, body, url)
            client.close()
        return answer.status

    def timely(self, part: Part) -> Iterator[bytes]:
        """Yield the bytes of a part. A store that takes them too slowly is given up at the end of the time limit."""
        for data in read_part(part.wanted.file, part.offset, part.size):
            if time.monotonic() > self.end:
                raise TimeoutError(f"the store did not take the files within {self.seconds} s")
            yield data

    def report(self, batch: list[Wanted]) -> None:
        """Report the stored files. Leave out those that changed, and give up if the store does not take the others."""
        stored, errors = [], [part.error for wanted in batch for part in wanted.parts if part.error]
        for number, wanted in enumerate(batch):
            complete = all(part.stored for part in wanted.parts)
            if complete and wanted.unchanged():
                stored.append({"id": number, "etags": [part.etag for part in wanted.parts]})
                continue
            self.files -= 1
            self.bytes -= wanted.facts.st_size
            if wanted.unchanged():
                raise StoreUnavailable(f"{wanted.path}: {errors[0] if errors else 'not stored'}")
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
