"""The outcome of an attempt. The session creates it once, and no component changes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.domain.errors import Reason, Stage


class Result(Enum):
    """The three ends of an attempt. The values are those of the JSON output and of the metrics."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt: the stage in which it ended, and the reason if it did not succeed.

    `exit_code` is that of the commands, None if they did not run to their end. `command` is the number of the last
    command that was started, 0 for none. `message` is one sentence for the user.
    """

    result: Result
    stage: Stage
    reason: Reason | None = None
    exit_code: int | None = None
    command: int = 0
    message: str = ""
