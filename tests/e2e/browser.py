"""A real browser without a window, to render the status page.

Each call starts a browser and ends it.
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
    """Return the path of the browser's program. Install the browser if there is none."""
    return kube.provider("browser", timeout=600).splitlines()[-1]


def browse(profile: Path, options: Sequence[str], url: str) -> str:
    """Open the page `url` in a new browser and return the browser's output.

    `options` are command line options of the browser, and `profile` is the folder of its profile.
    """
    command = [program(), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
    command += ["--disable-dev-shm-usage", f"--user-data-dir={profile}", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def document(profile: Path, url: str) -> str:
    """Return the page at `url` as HTML, after the browser has parsed it.

    `profile` is the folder of the browser's profile.
    """
    return browse(profile, ["--dump-dom"], url)


def picture(profile: Path, url: str, file: Path, *, width: int, height: int) -> None:
    """Write a picture of the page at `url` to `file`. `width` and `height` are the size of the browser's window."""
    browse(profile, [f"--window-size={width},{height}", f"--screenshot={file}"], url)
    assert file.read_bytes().startswith(b"\x89PNG"), "no picture was taken"
