"""A real browser without a window: what a page becomes in it, and how it looks."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import TYPE_CHECKING

from tests.e2e import kube

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@cache
def program() -> str:
    """Return the path of the browser."""
    return kube.provider("browser", timeout=600).splitlines()[-1]


def browse(profile: Path, options: Sequence[str], url: str) -> str:
    """Open a page once; returns what the browser prints."""
    command = [program(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(profile: Path, url: str) -> str:
    """Return the page as the browser understood it."""
    return browse(profile, ["--dump-dom"], url)


def picture(profile: Path, url: str, file: Path, *, width: int, height: int) -> None:
    """Take a picture of a window of this size."""
    browse(profile, [f"--window-size={width},{height}", f"--screenshot={file}"], url)
    assert file.read_bytes().startswith(b"\x89PNG"), "no picture was taken"
