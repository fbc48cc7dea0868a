"""The wait times of a session that are constants and not settings.

The application creates one object per agent. Tests pass an object with short waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenacity import wait_random_exponential

if TYPE_CHECKING:
    from tenacity.wait import wait_base

UPLOAD_BACKOFF = wait_random_exponential(multiplier=0.2, max=5)


@dataclass(frozen=True, slots=True)
class SessionTimings:
    """Wait times in seconds, and the number and the pauses of the tries to copy files."""

    # Seconds after the grace period of a stop request until the agent gives up waiting for the end of the commands. The
    # same limit applies to the rest of the log after a stop request.
    kill_margin: float = 20.0
    # Seconds to wait for the rest of a lost pod's log. If the node is unreachable, the API server would never end the
    # request for the log.
    lost_log_margin: float = 5.0
    # Seconds to wait for the rest of a lost pod's log after a stop request.
    lost_log_margin_stopping: float = 1.0
    # Maximum number of tries to copy the files out of the pod.
    upload_attempts: int = 8
    # Pause between two tries to copy the files out of the pod, if the API server asks for no pause of its own.
    upload_backoff: wait_base = UPLOAD_BACKOFF
