"""Poll for a condition, with a deadline.

Kubernetes, the kernel and container engines finish many changes after the command that caused them, so most verbs wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from deploy.dev.cluster.console import CommandFailed

# Seconds until a wait fails, if the caller names no other limit.
WAIT_SECONDS = 90.0
POLL_SECONDS = 0.1


def wait_until(condition: Callable[[], bool], description: str, seconds: float = WAIT_SECONDS) -> None:
    """Return as soon as `condition` is true.

    After `seconds`, raise CommandFailed, whose text names the `description`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise CommandFailed(f"waited {seconds:.0f} s for {description}")
        time.sleep(POLL_SECONDS)
