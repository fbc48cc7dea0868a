"""A server of git repositories and of their Git LFS files over HTTP, for tests that clone with the real git-lfs.

The server answers git's simple protocol, which only reads files, and the two requests by which git-lfs downloads. If
the server has a password, it asks every client for the password. A server lives for one `with` block.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pointer(content: bytes) -> str:
    """Return the text that Git LFS keeps in the repository in place of a file with this content."""
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Answers one HTTP request. The HTTP server creates a Handler for each connection."""

    server: Server

    def __init__(self, request: Any, address: Any, server: Server) -> None:
        super().__init__(request, address, server, directory=str(server.root))

    def do_GET(self) -> None:
        """Send a file of a repository, or a file of Git LFS."""
        if not self.has_password():
            return
        content = self.server.files.get(self.path.rpartition("/")[2])
        if content is None:
            super().do_GET()
        else:
            self.send("application/octet-stream", content)

    def do_POST(self) -> None:
        """Answer the batch request of git-lfs with the URL of each file."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.has_password():
            return
        self.server.batches += 1
        objects = [
            item | {"actions": {"download": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            if item["oid"] in self.server.files
            else item | {"error": {"code": 404, "message": "the file does not exist"}}
            for item in asked["objects"]
        ]
        self.send("application/vnd.git-lfs+json", json.dumps({"transfer": "basic", "objects": objects}).encode())

    def has_password(self) -> bool:
        """Return whether the request has the password or needs no password. If not, also send a response 401."""
        expected = base64.b64encode(f"git:{self.server.password}".encode()).decode()
        if not self.server.password or self.headers.get("Authorization") == f"Basic {expected}":
            return True
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="r"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def send(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Serves the repositories below `root`. `files` has the content of each Git LFS file by its SHA-256."""

    daemon_threads = True

    def __init__(self, root: Path, address: str, contents: tuple[bytes, ...], password: str) -> None:
        super().__init__((address, 0), Handler)
        self.root = root
        self.url = f"http://{address}:{self.server_port}"
        self.password = password
        self.files = {hashlib.sha256(content).hexdigest(): content for content in contents}
        self.batches = 0


@contextmanager
def serve_lfs(root: Path, *contents: bytes, address: str = "127.0.0.1", password: str = "") -> Iterator[Server]:
    """Serve the repositories below `root`, and Git LFS files with these contents, until the end of the block."""
    with Server(root, address, contents, password) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
