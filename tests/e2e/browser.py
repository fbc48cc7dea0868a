"""A real browser without a window, to render the status page.

Each call starts a browser and ends the browser.
"""

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
    """Open a page in a new browser. Return the output of the browser."""
    command = [program(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(profile: Path, url: str) -> str:
    """Return the document as the browser has parsed it."""
    return browse(profile, ["--dump-dom"], url)


def picture(profile: Path, url: str, file: Path, *, width: int, height: int) -> None:
    """Write a picture of a page to `file`. `width` and `height` are the size of the browser's window."""
    browse(profile, [f"--window-size={width},{height}", f"--screenshot={file}"], url)
    assert file.read_bytes().startswith(b"\x89PNG"), "no picture was taken"
