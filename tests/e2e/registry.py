"""A container registry that answers every pull with one HTTP status, on an address that Kubernetes nodes reach.

The registry lives as long as its `with` block.
"""

from __future__ import annotations

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 5000


@contextlib.contextmanager
def refusing(status: int) -> Iterator[str]:
    """Serve a registry that answers every pull with `status`, until the block ends.

    Yield the registry's HOST:PORT, with which image references begin.
    """

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = answer  # noqa: N815 - names of the library

        def log_message(self, format: str, *args: object) -> None:
            """Write no line to stderr, as the base class would for each request."""

    server = ThreadingHTTPServer((kube.provider("address"), PORT), Handler)
    thread = threading.Thread(target=server.serve_forever, name="registry", daemon=True)
    thread.start()
    try:
        yield f"{server.server_address[0]!s}:{PORT}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
