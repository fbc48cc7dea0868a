"""The keys `when` and `retry` of an action: whether it runs after what it needs, and whether it runs again. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from agent.domain.errors import INFRASTRUCTURE, Reason
from agent.domain.outcome import Outcome, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent.pipeline.yaml_document import Value

RETRY_KEYS = ("times", "reasons")
# Largest number of further attempts.
MAX_RETRIES = 10
# Reasons after which a further attempt can be asked for. A cancelled action is never tried again.
RETRY_REASONS = tuple(reason for reason in Reason if reason is not Reason.CANCELLED)


class Condition(Enum):
    """After which outcomes of the actions in `needs` an action runs. The values are the words of the pipeline file."""

    SUCCESS = "success"
    FAILURE = "failure"
    ALWAYS = "always"

    def holds(self, outcomes: Sequence[Outcome]) -> bool:
        """Return whether an action runs after these outcomes. Without outcomes, because nothing is needed, it runs."""
        succeeded = all(each.result is Result.SUCCEEDED for each in outcomes)
        return not outcomes or self is Condition.ALWAYS or succeeded is (self is Condition.SUCCESS)


@dataclass(frozen=True, slots=True)
class Retry:
    """How often an action that failed is tried again, and after which reasons."""

    times: int = 0
    reasons: frozenset[Reason] = INFRASTRUCTURE

    def covers(self, outcome: Outcome, attempt: int) -> bool:
        """Return whether another attempt follows this outcome of an attempt. Attempts count from 1."""
        return outcome.result is Result.FAILED and outcome.reason in self.reasons and attempt <= self.times


def read_condition(value: Value, has_needs: bool) -> Condition:
    condition = Condition(value.choice(each.value for each in Condition))
    if condition is not Condition.SUCCESS and not has_needs:
        value.refuse("must be success, because the action has neither `needs` nor `inputs`")
    return condition


def read_retry(value: Value) -> Retry:
    """Return the rule. A number alone means that number of further attempts after infrastructure's reasons."""
    if value.is_scalar:
        return Retry(read_times(value))
    keys = value.mapping(f"a number or a mapping with {', '.join(RETRY_KEYS)}", RETRY_KEYS)
    if "times" not in keys:
        value.refuse_missing("`times` is missing: the number of further attempts")
    names = [each.value for each in RETRY_REASONS]
    reasons = INFRASTRUCTURE
    if "reasons" in keys:
        reasons = frozenset(Reason(each.choice(names)) for each in keys["reasons"].items("a list of reasons"))
    return Retry(read_times(keys["times"]), reasons)


def read_times(value: Value) -> int:
    text = value.text("a number of attempts")
    if not re.fullmatch(r"[0-9]{1,2}", text) or int(text) > MAX_RETRIES:
        value.refuse(f"must be a number of further attempts, at most {MAX_RETRIES}, not {text!r}")
    return int(text)
