"""How a pipeline went, gathered from its events: what the final table shows and the exit code says.

Pure. A `Report` lives as long as somebody watches one pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from agent.actions import Outcome, Result
from agent.local import events

if TYPE_CHECKING:
    from agent.local.events import PipelineEvent


class ExitCode(IntEnum):
    """What `run` and `submit` end with."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    INTERRUPTED = 130


@dataclass(slots=True)
class ActionReport:
    """How one action went. `seconds` is 0 when it never ran."""

    name: str
    outcome: Outcome | None = None
    seconds: float = 0.0
    attempts: int = 0
    files: dict[bytes, int] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """Reason and exit code in a few words; empty on success."""
        if self.outcome is None or self.outcome.result is Result.SUCCEEDED:
            return ""
        reason = self.outcome.reason.value if self.outcome.reason else ""
        code = "" if self.outcome.exit_code is None else f" (exit code {self.outcome.exit_code})"
        return reason + code


@dataclass(slots=True)
class Report:
    """How a pipeline went so far."""

    name: str = ""
    folder: str = ""
    actions: dict[str, ActionReport] = field(default_factory=dict)
    ended: bool = False

    def add(self, event: PipelineEvent) -> None:
        """Take note of the next event."""
        match event.happening:
            case events.Submitted(name=name, actions=plans, folder=folder):
                self.name, self.folder = name, folder
                self.actions = {plan.name: ActionReport(plan.name) for plan in plans}
            case events.Started():
                self.of(event).attempts = event.attempt
                self.of(event).files.clear()
            case events.FileStored(path=path, size=size):
                self.of(event).files[path] = size
            case events.ActionEnded(outcome=outcome, seconds=seconds):
                action = self.of(event)
                action.outcome, action.seconds = outcome, seconds
            case events.Ended():
                self.ended = True

    def of(self, event: PipelineEvent) -> ActionReport:
        """Return the report of the action that an event is about."""
        return self.actions.setdefault(event.action, ActionReport(event.action))

    @property
    def exit_code(self) -> ExitCode:
        """Failed when an action failed by its own fault, else by whose fault it was."""
        outcomes = [action.outcome for action in self.actions.values()]
        if not self.ended or any(outcome is None for outcome in outcomes):
            return ExitCode.INFRASTRUCTURE
        failed = [outcome for outcome in outcomes if outcome and outcome.result is Result.FAILED]
        if any(outcome.reason is None or not outcome.reason.infrastructure for outcome in failed):
            return ExitCode.FAILED
        if failed:
            return ExitCode.INFRASTRUCTURE
        if any(outcome and outcome.result is not Result.SUCCEEDED for outcome in outcomes):
            return ExitCode.FAILED
        return ExitCode.SUCCEEDED
