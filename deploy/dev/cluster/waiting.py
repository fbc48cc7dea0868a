"""Poll for a condition, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.dev.cluster.console import CommandFailed

WAIT_SECONDS = 90.0


def until(passes: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Waits until `passes`; refuses after `seconds` with what was waited for."""
    deadline = time.monotonic() + seconds
    while not passes():
        if time.monotonic() > deadline:
            raise CommandFailed(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
