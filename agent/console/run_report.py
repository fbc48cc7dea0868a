"""How a pipeline went, gathered from its events: what views and summaries show and the exit code says.

Pure. A `Report` lives as long as somebody watches one pipeline; of a log it keeps only the last lines.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from agent.console.log_lines import Lines
from agent.domain import events as session_events
from agent.domain.events import Source
from agent.domain.outcome import Outcome, Result
from agent.pipeline import events

if TYPE_CHECKING:
    from agent.domain.errors import Stage
    from agent.pipeline.events import PipelineEvent

TAIL = 20
NOTES = 80


class ExitCode(IntEnum):
    """What `run` and `submit` end with."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    INTERRUPTED = 130


@dataclass(slots=True)
class ActionReport:
    """How one action went so far. `seconds` is 0 when it never ran; times are seconds since the epoch.

    `stages` are the seconds of each stage that has ended, `since` when the current one began. `tail` is the end of what
    the commands wrote, `notes` what the agent and the clone said about it.
    """

    name: str
    needs: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    outcome: Outcome | None = None
    seconds: float = 0.0
    attempts: int = 0
    files: dict[bytes, int] = field(default_factory=dict)
    environment: str = ""
    stage: Stage | None = None
    since: float = 0.0
    started: float = 0.0
    detail: str = ""
    command: int = 0
    stages: dict[Stage, float] = field(default_factory=dict)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL))
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=NOTES))
    lines: dict[bool, Lines] = field(default_factory=lambda: {True: Lines(), False: Lines()}, repr=False)

    @property
    def why(self) -> str:
        """Reason and exit code in a few words; empty on success."""
        if self.outcome is None or self.outcome.result is Result.SUCCEEDED:
            return ""
        reason = self.outcome.reason.value if self.outcome.reason else ""
        code = "" if self.outcome.exit_code is None else f" (exit code {self.outcome.exit_code})"
        return reason + code

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(self.files.values())

    def text_of(self, command: int) -> str:
        """Return a command as it was written, by its number from 1; "" when there is none."""
        return self.commands[command - 1] if 0 < command <= len(self.commands) else ""

    def begin(self, attempt: int, now: float) -> None:
        """Begin an attempt: nothing of an earlier one counts."""
        self.attempts, self.started, self.since = attempt, now, now
        self.stage, self.detail, self.command = None, "", 0
        self.files.clear()
        self.stages.clear()
        self.tail.clear()
        self.notes.clear()

    def enter(self, stage: Stage, detail: str, now: float) -> None:
        """Take note of a stage, or of progress within it."""
        if stage is not self.stage:
            self.leave(now)
            self.stage, self.since = stage, now
        self.detail = detail

    def leave(self, now: float) -> None:
        """Take note that the current stage is over."""
        if self.stage is not None:
            self.stages[self.stage] = self.stages.get(self.stage, 0.0) + max(0.0, now - self.since)

    def write(self, data: bytes, source: Source) -> list[str]:
        """Take a piece of the log; returns the lines that are whole now."""
        own = source is Source.COMMANDS
        found = self.lines[own].feed(data)
        (self.tail if own else self.notes).extend(found)
        return found

    def end(self, outcome: Outcome, seconds: float, now: float) -> None:
        """Take note of the end."""
        self.leave(now)
        self.stage, self.outcome, self.seconds = None, outcome, seconds
        self.tail.extend(self.lines[True].flush())
        self.notes.extend(self.lines[False].flush())


@dataclass(slots=True)
class Report:
    """How a pipeline went so far."""

    name: str = ""
    folder: str = ""
    actions: dict[str, ActionReport] = field(default_factory=dict)
    ended: bool = False
    started: float = 0.0
    seconds: float = 0.0

    def add(self, event: PipelineEvent) -> None:
        """Take note of the next event."""
        self.seconds = event.time - self.started if self.started else 0.0
        match event.body:
            case events.Submitted(name=name, actions=plans, folder=folder):
                self.name, self.folder, self.started = name, folder, event.time
                self.actions = {plan.name: ActionReport(plan.name, plan.needs, plan.commands) for plan in plans}
            case events.Ended():
                self.ended = True
            case _:
                self.note(self.of(event), event)

    def note(self, action: ActionReport, event: PipelineEvent) -> None:
        """Take note of what happened to an action."""
        match event.body:
            case events.Started():
                action.begin(event.attempt, event.time)
            case session_events.Accepted(environment=environment):
                action.environment = environment
            case session_events.StageChanged(stage=stage, detail=detail):
                action.enter(stage, detail, event.time)
            case session_events.CommandStarted(index=index):
                action.command = index
            case events.LogText(data=data, source=source):
                action.write(data, source)
            case events.FileStored(path=path, size=size):
                action.files[path] = size
            case events.ActionEnded(outcome=outcome, seconds=seconds):
                action.end(outcome, seconds, event.time)

    def of(self, event: PipelineEvent) -> ActionReport:
        """Return the report of the action that an event is about."""
        return self.actions.setdefault(event.action, ActionReport(event.action))

    @property
    def unsuccessful(self) -> list[ActionReport]:
        """The actions that failed themselves, in the order of the file: not those that were never begun."""
        return [each for each in self.actions.values() if each.outcome and each.outcome.result is Result.FAILED]

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
