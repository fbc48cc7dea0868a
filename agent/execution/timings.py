"""The waits of a session that no setting changes.

One object per agent, handed down from the application. Tests pass one with short waits.
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
    """Waits in seconds, numbers of attempts, and the back-off between them."""

    # Seconds that commands get beyond their grace period, until they count as impossible to stop in their pod. The
    # same limit holds for the rest of the log after a stop request.
    kill_margin: float = 20.0
    # Seconds that a lost pod may still deliver its log. The API server asks an unreachable node without an end.
    lost_log_margin: float = 5.0
    # The same after a stop request.
    lost_log_margin_stopping: float = 1.0
    # Number of attempts to copy the files out of the pod.
    upload_attempts: int = 8
    # Seconds between these attempts, if the API server does not name them.
    upload_backoff: wait_base = UPLOAD_BACKOFF
