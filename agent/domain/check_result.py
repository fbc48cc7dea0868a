"""What the doctor finds: one line per check, for a person who wants to know why nothing works.

A `Finding` lives from its check to its line of output. Both sides of the agent make them, the cluster's and the
scheduler's, and neither knows the other; that is why the word stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How a check ended. Only `FAILED` makes the doctor fail; `SKIPPED` could not be tried because another failed."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, how it is, and what to do about it when it is not well."""

    check: str
    verdict: Verdict
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """Return a check that is well."""
    return Finding(check, Verdict.OK, detail)


def warning(check: str, detail: str, advice: str) -> Finding:
    """Return a check that is not as it should be, but harms nothing yet."""
    return Finding(check, Verdict.WARNING, detail, advice)


def failed(check: str, detail: str, advice: str) -> Finding:
    """Return a check that keeps the agent from its work."""
    return Finding(check, Verdict.FAILED, detail, advice)


def skipped(check: str, detail: str) -> Finding:
    """Return a check that could not be tried."""
    return Finding(check, Verdict.SKIPPED, detail)
