"""An HTTP server that behaves as an object store does for one signed request, and fails as a test has set.

It checks no signature. `versitygw` in the tests on the cluster does.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKSUM = "x-amz-checksum-sha256"


class FakeStore:
    """The objects by path and query, and the answers of the next requests.

    A number in `faults` is the status of the next answer, "cut" ends the connection in the middle of the answer or of
    the body, None is a normal answer.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[int | str | None] = deque()
        self.requests: list[str] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.url = ""

    def enter(self, change: int) -> None:
        with self.lock:
            self.running += change
            self.most = max(self.most, self.running)

    def next_fault(self, line: str) -> int | str | None:
        with self.lock:
            self.requests.append(line)
            return self.faults.popleft() if self.faults else None


@contextmanager
def fake_store() -> Iterator[FakeStore]:
    """Yield a store that listens on loopback."""
    store = FakeStore()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

        def answer(self, status: int, body: bytes = b"", cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

        def do_PUT(self) -> None:
            store.enter(1)
            try:
                self.put()
            finally:
                store.enter(-1)

        def put(self) -> None:
            fault = store.next_fault(f"PUT {self.path}")
            size = int(self.headers["Content-Length"])
            body = self.rfile.read(size // 2 if fault == "cut" else size)
            if fault == "cut":
                self.close_connection = True
                return
            if isinstance(fault, int):
                self.answer(fault, b"<Error><Code>Scripted</Code></Error>")
            elif base64.b64encode(hashlib.sha256(body).digest()).decode() != self.headers[CHECKSUM]:
                self.answer(400, b"<Error><Code>BadDigest</Code></Error>")
            else:
                store.objects[self.path] = body
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.send_header("ETag", f'"tag-of-{len(body)}"')
                self.end_headers()

        def do_GET(self) -> None:
            fault = store.next_fault(f"GET {self.path}")
            if isinstance(fault, int):
                self.answer(fault, b"<Error><Code>Scripted</Code></Error>")
            elif self.path not in store.objects:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            else:
                self.answer(200, store.objects[self.path], cut=fault == "cut")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="fake store", daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
