"""Serve the source of a published Python package in a git repository, for the demo and for e2e tests.

pip downloads the package's sdist, and the wheels that its tests need, into a folder that later runs use again. The
repository contains the source and the wheels, because the pods of some clusters can reach nothing else. `git daemon`
serves the repository at an address that pods can reach.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE, VERSION = "h11", "0.16.0"
TOOLS = ("pytest==9.2.0", "setuptools==84.2.1")
NAME = f"{PACKAGE}.git"


def cache() -> Path:
    """Return the folder that keeps pip's downloads for later runs. Create it if it does not exist."""
    folder = Path(os.environ.get("SEALCI_CACHE") or Path.home() / ".cache" / "sealci-agent") / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_repository(folder: Path) -> Path:
    """Commit the source of the package PACKAGE and all downloaded wheels to a new git repository below `folder`.

    Return the path of a bare clone of this repository.
    """
    work, bare = folder / "work", folder / NAME
    downloads = cache()
    if not (downloads / f"{PACKAGE}-{VERSION}.tar.gz").exists():
        pip("download", *TOOLS, into=downloads / "wheels")
        pip("download", "--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", into=downloads)
    with tarfile.open(downloads / f"{PACKAGE}-{VERSION}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (folder / f"{PACKAGE}-{VERSION}").rename(work)
    (work / "wheels").mkdir()
    for wheel in (downloads / "wheels").glob("*.whl"):
        (work / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    git(work, "init", "--quiet", "--initial-branch=main", ".")
    git(work, "add", "--all", "--force")
    git(work, "commit", "--quiet", "--message", f"{PACKAGE} {VERSION} as published")
    git(folder, "clone", "--quiet", "--bare", str(work), str(bare))
    return bare


def pip(*arguments: str, into: Path) -> None:
    """Run a subcommand of pip that downloads into the folder `into`."""
    into.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", *arguments[:1], "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--dest", str(into), *arguments[1:]], check=True)


def git(folder: Path, *arguments: str) -> None:
    """Run git in `folder`, with an identity that does not depend on the user's configuration."""
    identity = ["-c", "user.name=demo", "-c", "user.email=demo@localhost", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True)


@contextlib.contextmanager
def serve_git(folder: Path, address: str) -> Iterator[str]:
    """Serve every git repository below `folder` while the `with` block runs. Yield the base URL of the repositories."""
    port = free_port(address)
    command = ["git", "daemon", "--reuseaddr", "--export-all", f"--base-path={folder}", f"--listen={address}"]
    daemon = subprocess.Popen([*command, f"--port={port}", str(folder)], stderr=subprocess.DEVNULL)
    try:
        wait_until_listening(address, port, daemon)
        yield f"git://{address}:{port}"
    finally:
        daemon.terminate()
        daemon.wait(10)


def free_port(address: str) -> int:
    """Return a port at which no process listens. Another process can take the port before the caller uses it."""
    with socket.create_server((address, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_until_listening(address: str, port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until `process` listens at the port. Raise RuntimeError if `process` ends, or after about 10 s."""
    for _ in range(100):
        if process.poll() is not None:
            raise RuntimeError(f"git daemon ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise RuntimeError("git daemon does not listen")
