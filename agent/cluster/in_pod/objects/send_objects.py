"""Put the wanted files straight into an object store. The program runs in container `helper`, as `collect_files` does.

The agent signs the URLs, and no byte of a file passes through the agent. The program writes lines of JSON to stdout:
the objects of a batch with their hashes (`want`), what was stored (`stored`), and at last the manifest, whose lines are
JSON arrays as in `collect_files`. Before a `want`, a line that begins with `#` has the files of each pack. Stdin has
one line for each `want`: the requests for each part of each object (`grants`), and the CA of the store (`ca`).

Small files go together into packs, if the scheduler can store the place of a file within an object. A small file is
read once, and stays in memory until its pack is stored. A large file is read twice: for its hash, and for the upload.
The hash is a signed header, so the store itself refuses other bytes. A file that changes meanwhile is left out, or
fails the collection if the action declares it.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
import threading
import time

from agent.cluster.in_pod.files.collect_files import (
    ALARM_SECONDS,
    Collector,
    DeclaredFileMissing,
    Output,
    old_files,
)
from agent.cluster.in_pod.objects.outgoing import (
    PACKED_BYTES,
    Pack,
    Part,
    Wanted,
    WantedPack,
    read_part,
    start_threads,
    unchanged,
)
from agent.cluster.in_pod.objects.store_client import (
    ANSWER_BYTES,
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

BATCH_FILES = 30  # maximum number of objects of one batch, so that URLs are fresh
BATCH_PACKS = 4  # maximum number of packs of one batch, which are all in memory
BATCH_BYTES = 1 << 30  # number of bytes after which a batch ends
IDLE_ROUNDS = 3  # number of times that grants are asked again although no part was stored with the last ones
CHANGED = "changed while it was read"
LINE_BYTES = 16 << 20  # maximum number of bytes of a line of grants


class StoreUnavailable(Exception):
    """The store does not take a part, for a reason that the message states."""


class ObjectSender(Collector):
    """Collects files as `Collector` does, and puts them into the store instead of an archive.

    `packs`: small files go into packs. `progress` is called about once a second with the number of bytes of the batch
    that were sent.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.stdin: BinaryIO = sys.stdin.buffer
        self.packs = False
        self.progress: Callable[[int], object] = lambda _: None
        self.pack = Pack()
        self.batch: list[Wanted | WantedPack] = []
        self.batch_bytes = self.batch_packs = 0
        self.idle: list[StoreClient] = []  # connections that no thread uses
        self.context: ssl.SSLContext | None = None
        self.broken = threading.Event()  # a part has failed for good, so no further request is of use

    def send_file(self, path: str, file: int, facts: os.stat_result) -> None:
        """Add the file to the pack or to the batch. `Collector` closes FILE afterwards, so the batch keeps a copy."""
        if self.packs and facts.st_size <= PACKED_BYTES:
            self.pack_file(path, file, facts)
            return
        self.files += 1
        self.bytes += facts.st_size
        self.add(Wanted(path, os.dup(file), facts))

    def pack_file(self, path: str, file: int, facts: os.stat_result) -> None:
        """Read a small file into the pack, unless the file changes meanwhile."""
        content = b"".join(read_part(file, 0, facts.st_size))
        if not unchanged(file, facts):
            self.exceed(path, CHANGED)
            return
        if not self.pack.has_room(len(content)):
            self.close_pack()
        self.pack.add(path, facts.st_mode & 0o777, content)
        self.files += 1
        self.bytes += len(content)

    def close_pack(self) -> None:
        """Add the files of the pack to the batch, and begin a new pack."""
        pack, self.pack = self.pack, Pack()
        data = bytes(pack.data)
        if len(pack.records) > BATCH_FILES:
            self.batch_packs += 1
            self.add(WantedPack(pack.records, data))
            return
        # One question has room for so few files. As objects of their own they have names that people can read.
        for path, mode, size, digest, start in pack.records:
            self.add(WantedPack([(path, mode, size, digest, 0)], data[start : start + size]))

    def add(self, wanted: Wanted | WantedPack) -> None:
        """Add an object to the batch, and send the batch when it is full."""
        self.batch.append(wanted)
        self.batch_bytes += wanted.bytes
        if len(self.batch) >= BATCH_FILES or self.batch_bytes >= BATCH_BYTES or self.batch_packs >= BATCH_PACKS:
            self.send_batch()

    def send_manifest(self, exceeded: tuple[str, str] | None) -> None:
        """Send the last batch, unless the collection has failed, and then the manifest."""
        if exceeded is None:
            try:
                self.close_pack()
                self.send_batch()
            except DeclaredFileMissing as error:
                exceeded = error.args
        self.out.write("".join(self.manifest_end(exceeded)).encode("ascii"))

    def write_line(self, value: object) -> None:
        self.out.write(json.dumps(value).encode() + b"\n")
        self.out.flush()

    def send_batch(self) -> None:
        """Ask for grants, put all parts of the batch, and report what was stored."""
        batch, self.batch, self.batch_bytes, self.batch_packs = self.batch, [], 0, 0
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
                wanted.close()

    def ask(self, batch: list[Wanted | WantedPack]) -> None:
        for table in [wanted.table() for wanted in batch]:
            if table:
                self.out.write(b"#" + table + b"\n")
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
        self.progress(0)
        for thread in start_threads(self.put_part, parts):
            while thread.is_alive():
                thread.join(1.0)
                self.progress(sum(part.sent for part in parts))

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
        part.sent = 0
        for data in part.pieces():
            if time.monotonic() > self.end:
                raise TimeoutError(f"the store did not take the files within {self.seconds} s")
            yield data
            part.sent += len(data)

    def report(self, batch: list[Wanted | WantedPack]) -> None:
        """Report the stored files. Leave out those that changed, and give up if the store does not take the others."""
        stored, errors = [], [part.error for wanted in batch for part in wanted.parts if part.error]
        for number, wanted in enumerate(batch):
            complete = all(part.stored for part in wanted.parts)
            if complete and wanted.unchanged():
                stored.append({"id": number, "etags": [part.etag for part in wanted.parts]})
                continue
            self.files -= wanted.files
            self.bytes -= wanted.bytes
            if wanted.unchanged():
                raise StoreUnavailable(f"{wanted.path}: {errors[0] if errors else 'not stored'}")
            self.exceed(wanted.path, CHANGED)
        self.write_line({"stored": stored})


def main(arguments: list[str]) -> None:
    """Run with the arguments WORKSPACE SNAPSHOT, LIMITS (see `Collector`), PACKS, the NUMBER of paths, paths, excludes.

    PACKS is 1 if small files go into packs, else 0.
    """
    workspace, snapshot, *numbers = arguments[:8]
    *limits, packs, number = [int(limit) for limit in numbers]
    signal.alarm(limits[3] + ALARM_SECONDS)
    paths, exclude = arguments[8 : 8 + number], arguments[8 + number :]
    sender = ObjectSender(Output(1), limits, paths, exclude, old_files(paths, snapshot))
    sender.packs = bool(packs)
    try:
        sender.run(workspace)
    except StoreUnavailable as error:
        sender.write_line({"unavailable": str(error)})
