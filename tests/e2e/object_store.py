"""A real object store for tests: versitygw, with a folder as its buckets, at an address that pods can reach."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml

from deploy.demo.source import free_port, wait_until_listening
from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "artifacts"
# Folder of a bucket in which versitygw keeps the parts of uploads that are not complete.
PRIVATE = ".sgwtmp/"


class Store:
    """One versitygw process. `settings` is the section `objects` for agents that use it.

    `address` "" is an address of the cluster's node, which pods can reach.
    """

    def __init__(self, folder: Path, address: str = "") -> None:
        self.folder = folder / "buckets"
        (self.folder / BUCKET).mkdir(parents=True)
        self.log = folder / "versitygw.log"
        self.address = address or kube.provider("address")
        self.port = free_port(self.address)
        self.secret, self.sign_key = secrets.token_hex(16), secrets.token_hex(32)
        self.credentials = folder / "credentials"
        self.credentials.write_text(f"[default]\naws_access_key_id = tests\naws_secret_access_key = {self.secret}\n")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of a side that signs URLs by itself."""
        return {
            "issuer": "agent",
            "endpoint": f"http://{self.address}:{self.port}",
            "bucket": BUCKET,
            "path_style": True,
            "credentials_file": str(self.credentials),
        }

    def cache_options(self, folder: Path) -> dict[str, Any]:
        """Return the options of `open_lab` for agents with caches in this store, and for their scheduler."""
        config, key = folder / "objects.yaml", folder / "sign-key"
        config.write_text(yaml.safe_dump({"objects": self.settings}))
        key.write_text(self.sign_key)
        return {
            "scheduler_options": ("--objects", str(config)),
            "objects": self.settings,
            "caches": {"store": "objects", "sign_key_file": str(key)},
        }

    def start(self) -> None:
        """Start the store, or start it again with the same content."""
        command = [kube.provider("versitygw").splitlines()[-1], "--port", f"{self.address}:{self.port}"]
        keys = {"ROOT_ACCESS_KEY_ID": "tests", "ROOT_SECRET_ACCESS_KEY": self.secret}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "posix", str(self.folder)], env=os.environ | keys, stdout=log, stderr=log
            )
        wait_until_listening(self.address, self.port, self.process)

    def pause(self) -> None:
        """Let the store accept connections and answer nothing, until `resume`."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    @property
    def objects(self) -> dict[str, Path]:
        """Return the files behind the objects, by their names."""
        top = self.folder / BUCKET
        found = {path.relative_to(top).as_posix(): path for path in top.rglob("*") if path.is_file()}
        return {name: path for name, path in found.items() if not name.startswith(PRIVATE)}


@contextmanager
def object_store(folder: Path, address: str = "") -> Iterator[Store]:
    """Yield a running store that keeps its content below `folder`, by default at an address that pods can reach."""
    store = Store(folder, address)
    store.start()
    try:
        yield store
    finally:
        store.stop()
