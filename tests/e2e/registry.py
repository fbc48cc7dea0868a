"""Container registries on an address that Kubernetes nodes and pods reach: one that stores images, one that refuses.

A registry lives as long as its `with` block. Nodes use only one port without TLS, so at most one registry of all test
processes lives at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import subprocess
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from tests.e2e import kube
from tests.e2e.lab import until

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 5000


@contextlib.contextmanager
def only_registry() -> Iterator[str]:
    """Wait until no other test process has a registry. Yield the address for the registry of this process."""
    address = kube.provider("address")
    with (Path(tempfile.gettempdir()) / f"sealci-registry-{address}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield address


@contextlib.contextmanager
def storing(folder: Path) -> Iterator[str]:
    """Run Debian's docker-registry, which stores images below `folder`, until the block ends.

    Yield the registry's HOST:PORT, with which image references begin.
    """
    with only_registry() as address:
        registry, config, log_file = f"{address}:{PORT}", folder / "registry.json", folder / "registry.log"
        storage = {"filesystem": {"rootdirectory": str(folder / "images")}}
        config.write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": registry}}))
        with log_file.open("wb") as log:
            process = subprocess.Popen([kube.provider("registry"), "serve", str(config)], stdout=log, stderr=log)

        def listening() -> bool:
            assert process.poll() is None, log_file.read_text()
            with contextlib.suppress(OSError):
                return bool(urllib.request.urlopen(f"http://{registry}/v2/", timeout=5).status == 200)
            return False

        try:
            until(listening, "the registry does not answer")
            yield registry
        finally:
            process.terminate()
            process.wait(10)


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

    with only_registry() as address:
        server = ThreadingHTTPServer((address, PORT), Handler)
        thread = threading.Thread(target=server.serve_forever, name="registry", daemon=True)
        thread.start()
        try:
            yield f"{address}:{PORT}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join(5)
