"""An HTTP server that behaves as an object store does for one signed request, and fails as a test has set.

It checks no signature. `versitygw` in the tests on the cluster does.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKSUM = "x-amz-checksum-sha256"


class FakeStore:
    """The objects by path, with or without query, and the answers of the next requests.

    A number in `faults` is the status of the next answer, None is a normal answer. "cut" ends the connection in the
    middle of the answer or of the body. "early" refuses a body after its first bytes and closes the connection. "flip"
    changes a bit of the body on its way. "stall" does not answer before the store ends. `clock` is the difference of
    the store's clock in seconds. A store without `ranges` sends whole objects.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[int | str | None] = deque()
        self.requests: list[str] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.clock = 0.0
        self.ranges = True
        self.url = ""

    def enter(self, change: int) -> None:
        with self.lock:
            self.running += change
            self.most = max(self.most, self.running)

    def next_fault(self, line: str) -> int | str | None:
        with self.lock:
            self.requests.append(line)
            return self.faults.popleft() if self.faults else None


class Handler(BaseHTTPRequestHandler):
    """Serves one connection. `store` is set in a class of its own for each self.store."""

    protocol_version = "HTTP/1.1"
    store: FakeStore

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((time.time() if timestamp is None else timestamp) + self.store.clock)

    def answer(self, status: int, body: bytes = b"", cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def do_PUT(self) -> None:
        self.store.enter(1)
        try:
            self.put()
        finally:
            self.store.enter(-1)

    def put(self) -> None:
        fault = self.store.next_fault(f"PUT {self.path}")
        size = int(self.headers["Content-Length"])
        if fault == "stall":
            self.store.ended.wait()
        body = self.rfile.read({"cut": size // 2, "early": 1, "stall": 0}.get(str(fault), size))
        if fault in ("cut", "stall"):
            self.close_connection = True
        elif fault == "early":
            self.close_connection = True
            self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        elif isinstance(fault, int):
            self.answer(fault, b"<Error><Code>Scripted</Code></Error>")
        else:
            self.keep(body if fault is None else flipped(body))

    def keep(self, body: bytes) -> None:
        if base64.b64encode(hashlib.sha256(body).digest()).decode() != self.headers[CHECKSUM]:
            self.answer(400, b"<Error><Code>BadDigest</Code></Error>")
            return
        self.store.objects[self.path] = body
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.send_header("ETag", f'"tag-of-{len(body)}"')
        self.end_headers()

    def do_POST(self) -> None:
        fault = self.store.next_fault(f"POST {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if isinstance(fault, int):
            self.answer(fault, b"<Error><Code>Scripted</Code></Error>")
        elif "uploads=" in self.path:
            self.answer(200, b"<r><UploadId>upload-1</UploadId></r>")
        else:
            self.answer(200, b"<r><ETag>&quot;tag-of-all&quot;</ETag></r>")

    def do_DELETE(self) -> None:
        self.store.next_fault(f"DELETE {self.path}")
        self.answer(204)

    def do_GET(self) -> None:
        span = self.headers.get("Range", "")
        fault = self.store.next_fault(f"GET {self.path} {span}".rstrip())
        if fault == "stall":
            self.store.ended.wait()
            self.close_connection = True
        elif isinstance(fault, int):
            self.answer(fault, b"<Error><Code>Scripted</Code></Error>")
        elif (data := self.store.objects.get(self.path, self.store.objects.get(self.path.partition("?")[0]))) is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            status = 200
            if span and self.store.ranges:
                first, last = map(int, span.removeprefix("bytes=").split("-"))
                status, data = 206, data[first : last + 1]
            self.answer(status, data if fault != "flip" else flipped(data), cut=fault == "cut")


def flipped(body: bytes) -> bytes:
    return bytes([body[0] ^ 1]) + body[1:]


@contextmanager
def fake_store() -> Iterator[FakeStore]:
    """Yield a store that listens on loopback."""
    store = FakeStore()

    class OwnHandler(Handler):
        pass

    OwnHandler.store = store
    server = ThreadingHTTPServer(("127.0.0.1", 0), OwnHandler)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="fake store", daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
