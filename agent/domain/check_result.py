"""The result of one check of `sealci-agent doctor`.

The cluster's checks and the scheduler's checks both return these values and do not import each other. A `Finding` lives
from its check until it is printed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """The result of a check. Only `FAILED` makes `sealci-agent doctor` fail.

    `SKIPPED`: the check did not run, because an earlier check failed.
    """

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its name, its result, what was found, and what the installer can do about a problem."""

    check: str
    verdict: Verdict
    detail: str
    advice: str = ""


def ok(check: str, detail: str) -> Finding:
    """Return the finding of a check without a problem."""
    return Finding(check, Verdict.OK, detail)


def warning(check: str, detail: str, advice: str) -> Finding:
    """Return the finding of a problem that does not stop the agent from working."""
    return Finding(check, Verdict.WARNING, detail, advice)


def failed(check: str, detail: str, advice: str) -> Finding:
    """Return the finding of a problem that stops the agent from working."""
    return Finding(check, Verdict.FAILED, detail, advice)


def skipped(check: str, detail: str) -> Finding:
    """Return the finding of a check that could not run."""
    return Finding(check, Verdict.SKIPPED, detail)
