"""How an action ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain.errors import Reason, Stage

if TYPE_CHECKING:
    pass


class Result(Enum):
    """How an attempt ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The one end of an attempt. `command` is the last that was started, 0 when none was."""

    result: Result
    stage: Stage
    reason: Reason | None = None
    exit_code: int | None = None
    command: int = 0
    message: str = ""
