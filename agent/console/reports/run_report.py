"""Collect the events of a pipeline into a report.

Views and report files show the report, and the report decides the exit code.

A `Report` lives as long as the command follows its pipeline. It keeps only the last lines of each log, and performs no
I/O.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from agent.console.formatting import duration_text, size_text
from agent.console.terminal_text import LineSplitter
from agent.domain import events as session_events
from agent.domain.events import CacheKind, ServiceState, Source
from agent.domain.outcome import Outcome, Result
from agent.pipeline import events

if TYPE_CHECKING:
    from agent.domain.errors import Stage
    from agent.pipeline.events import PipelineEvent

# The start of the scheduler's message about an action whose `needs` did not succeed.
NOT_RUN = "not run: "
# Maximum number of lines kept from the end of what the commands wrote.
TAIL_LINES = 20
# Maximum number of lines kept of what the agent and the clone logged.
NOTE_LINES = 80


class ExitCode(IntEnum):
    """Exit codes of `run` and `submit`."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    INFRASTRUCTURE = 3
    INTERRUPTED = 130


class Severity(IntEnum):
    """How bad the end of an action is for the pipeline. The worst action decides the exit code."""

    SUCCEEDED = 0
    CANCELLED = 1
    INFRASTRUCTURE_FAILURE = 2
    USER_FAILURE = 3
    NOT_ENDED = 4


EXIT_CODES = {
    Severity.SUCCEEDED: ExitCode.SUCCEEDED,
    Severity.CANCELLED: ExitCode.FAILED,
    Severity.INFRASTRUCTURE_FAILURE: ExitCode.INFRASTRUCTURE,
    Severity.USER_FAILURE: ExitCode.FAILED,
    # If an action has no outcome, the scheduler or the connection to the scheduler has failed.
    Severity.NOT_ENDED: ExitCode.INFRASTRUCTURE,
}


def severity(outcome: Outcome | None) -> Severity:
    """Return the severity of an outcome. None: the action has no outcome yet."""
    if outcome is None:
        return Severity.NOT_ENDED
    if outcome.result is Result.SUCCEEDED:
        return Severity.SUCCEEDED
    if outcome.result is Result.CANCELLED:
        return Severity.CANCELLED
    infrastructure = outcome.reason is not None and outcome.reason.infrastructure
    return Severity.INFRASTRUCTURE_FAILURE if infrastructure else Severity.USER_FAILURE


@dataclass(slots=True)
class ServiceReport:
    """The state of one service. `since` is in seconds since the epoch. `tail` is the known end of its log."""

    state: ServiceState = ServiceState.STARTING
    since: float = 0.0
    text: str = ""
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    splitter: LineSplitter = field(default_factory=LineSplitter, repr=False)


def service_text(change: session_events.ServiceChanged) -> str:
    """Return the state of a service in words: "ready", "ended with exit code 1: killed for memory"."""
    code = "" if change.exit_code is None else f" with exit code {change.exit_code}"
    return f"{change.state.value}{code}{f': {change.message}' if change.message else ''}"


def cache_text(result: session_events.CacheResult) -> str:
    """Return what happened to a cache in words: "hit, 12.3 MB in 0.8 s". The log has the cause of a fault."""
    used = f" {result.used_key}" if result.kind is CacheKind.FALLBACK else ""
    moved = f", {size_text(result.bytes)} in {duration_text(result.seconds)}" if result.bytes else ""
    return f"{result.kind.value}{used}{moved}"


@dataclass(slots=True)
class ActionReport:
    """The state of one action, as known from the events so far.

    `seconds` is the duration of the whole action, 0 if it never ran. `started_at` and `stage_since` are seconds since
    the epoch. `stages` holds the seconds of each stage that has ended. `tail` is the end of what the commands wrote.
    `notes` is what the agent and the clone logged. `services` holds the services by name, and `caches` what happened to
    the caches, in order. `splitters` has the key True
    for the log of the commands and False for all other log, except that of services.
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
    stage_since: float = 0.0
    started_at: float = 0.0
    detail: str = ""
    command: int = 0
    stages: dict[Stage, float] = field(default_factory=dict)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=NOTE_LINES))
    services: dict[str, ServiceReport] = field(default_factory=dict)
    caches: list[CacheKind] = field(default_factory=list)
    splitters: dict[bool, LineSplitter] = field(
        default_factory=lambda: {True: LineSplitter(), False: LineSplitter()}, repr=False
    )

    @property
    def reason_text(self) -> str:
        """Reason and exit code, as in "COMMAND_FAILED (exit code 3)". Empty on success."""
        if self.outcome is None or self.outcome.result is Result.SUCCEEDED:
            return ""
        if self.outcome.message.startswith(NOT_RUN):
            return self.outcome.message.removeprefix(f"{NOT_RUN}it ").removesuffix(", which did not succeed")
        reason = self.outcome.reason.value if self.outcome.reason else ""
        code = "" if self.outcome.exit_code is None else f" (exit code {self.outcome.exit_code})"
        return reason + code

    @property
    def result_text(self) -> str:
        """The result, as in "succeeded". "not run" if the outcomes of the needed actions do not fit the condition."""
        if self.outcome is None:
            return "not ended"
        return "not run" if self.outcome.message.startswith(NOT_RUN) else self.outcome.result.value

    @property
    def size(self) -> int:
        """The number of bytes of all copied files together."""
        return sum(self.files.values())

    @property
    def caches_text(self) -> str:
        """What happened to the caches, as in "hit" or "2 miss, 2 saved". Empty without caches."""
        counts = Counter(each.value for each in self.caches)
        return ", ".join(name if count == 1 else f"{count} {name}" for name, count in counts.items())

    def command_text(self, number: int) -> str:
        """Return the command with this number, counted from 1. Returns "" if there is none."""
        return self.commands[number - 1] if 0 < number <= len(self.commands) else ""

    def begin_attempt(self, attempt: int, now: float) -> None:
        """Start an attempt, and drop the state of the previous attempt."""
        self.attempts, self.started_at, self.stage_since = attempt, now, now
        self.stage, self.detail, self.command = None, "", 0
        self.files.clear()
        self.stages.clear()
        self.tail.clear()
        self.notes.clear()
        self.services.clear()
        self.caches.clear()

    def enter_stage(self, stage: Stage, detail: str, now: float) -> None:
        """Record a new stage, or a new detail of the current stage."""
        if stage is not self.stage:
            self.leave_stage(now)
            self.stage, self.stage_since = stage, now
        self.detail = detail

    def leave_stage(self, now: float) -> None:
        """Add the time of the current stage to `stages`."""
        if self.stage is not None:
            self.stages[self.stage] = self.stages.get(self.stage, 0.0) + max(0.0, now - self.stage_since)

    def change_service(self, change: session_events.ServiceChanged, now: float) -> None:
        """Record the new state of a service."""
        service = self.services.setdefault(change.name, ServiceReport())
        service.state, service.since, service.text = change.state, now, service_text(change)

    def add_service_log(self, data: bytes, name: str) -> None:
        """Take the next bytes of the log of a service."""
        service = self.services.setdefault(name, ServiceReport())
        service.tail.extend(service.splitter.feed(data))

    def add_log(self, data: bytes, source: Source) -> list[str]:
        """Process the next bytes of the log, and return the lines that they complete."""
        from_commands = source is Source.COMMANDS
        lines = self.splitters[from_commands].feed(data)
        (self.tail if from_commands else self.notes).extend(lines)
        return lines

    def end(self, outcome: Outcome, seconds: float, now: float) -> None:
        self.leave_stage(now)
        self.stage, self.outcome, self.seconds = None, outcome, seconds
        self.tail.extend(self.splitters[True].flush())
        self.notes.extend(self.splitters[False].flush())


@dataclass(slots=True)
class Report:
    """The state of a pipeline, as known from the events so far. `seconds` is the time up to the last event.

    `folder` has the logs and files. `local`: whether `folder` is on this machine, and not on the scheduler's.
    `copied`: whether the files were copied from the scheduler's machine to `folder`.
    """

    name: str = ""
    folder: str = ""
    copied: bool = False
    local: bool = True
    actions: dict[str, ActionReport] = field(default_factory=dict)
    complete: bool = False
    started_at: float = 0.0
    seconds: float = 0.0

    def add(self, event: PipelineEvent) -> None:
        """Update the report with the next event of the pipeline."""
        self.seconds = event.time - self.started_at if self.started_at else 0.0
        match event.body:
            case events.Submitted(name=name, actions=plans, folder=folder):
                self.name, self.folder, self.started_at = name, folder, event.time
                self.actions = {plan.name: ActionReport(plan.name, plan.needs, plan.commands) for plan in plans}
            case events.Ended():
                self.complete = True
            case _:
                action = self.actions.setdefault(event.action, ActionReport(event.action))
                self.add_to_action(action, event)

    def add_to_action(self, action: ActionReport, event: PipelineEvent) -> None:
        """Update the state of an action with an event about it."""
        match event.body:
            case events.WaitingForAgent(detail=detail):
                action.detail = detail
            case events.Started():
                action.begin_attempt(event.attempt, event.time)
            case session_events.Accepted(environment=environment):
                action.environment = environment
            case session_events.StageChanged(stage=stage, detail=detail):
                action.enter_stage(stage, detail, event.time)
            case session_events.CommandStarted(index=index):
                action.command = index
            case session_events.CacheResult(kind=kind):
                action.caches.append(kind)
            case session_events.ServiceChanged() as change:
                action.change_service(change, event.time)
            case events.LogText(data=data, source=Source.SERVICE, service=service):
                action.add_service_log(data, service)
            case events.LogText(data=data, source=source):
                action.add_log(data, source)
            case events.FileStored(path=path, size=size):
                action.files[path] = size
            case events.ActionEnded(outcome=outcome, seconds=seconds):
                action.end(outcome, seconds, event.time)

    @property
    def failed_actions(self) -> list[ActionReport]:
        """Actions with the result `failed`, in the order of the file. Cancelled actions do not count as failed."""
        return [each for each in self.actions.values() if each.outcome and each.outcome.result is Result.FAILED]

    @property
    def exit_code(self) -> ExitCode:
        """The exit code for the highest `Severity` of all actions.

        If the last event of the pipeline is missing, the severity is `NOT_ENDED`.
        """
        if not self.complete:
            return EXIT_CODES[Severity.NOT_ENDED]
        severities = (severity(action.outcome) for action in self.actions.values())
        return EXIT_CODES[max(severities, default=Severity.SUCCEEDED)]
