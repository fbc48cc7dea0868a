"""A pipeline as lines, as they come: for files, pipes, CI systems and whoever asks for `--output plain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from agent.console import final_summary
from agent.console.formatting import amount
from agent.console.log_lines import Lines
from agent.console.run_report import ActionReport
from agent.console.view import View
from agent.domain import events as session_events
from agent.domain.errors import Stage
from agent.domain.events import Source
from agent.pipeline import events

if TYPE_CHECKING:
    from agent.console.run_report import Report
    from agent.pipeline.events import PipelineEvent

WIDTH = 200  # a file has none: nothing is cut for it


class LineView(View):
    """Lines as they come, with the name of their action before them when there are several; a table at the end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.console = Console(
            file=stream, force_terminal=False, color_system=None, highlight=False, soft_wrap=True, width=WIDTH
        )
        self.prefixes: dict[str, str] = {}
        self.lines: dict[str, Lines] = {}
        self.commands: dict[str, tuple[str, ...]] = {}
        self.stages: dict[str, Stage] = {}

    def show(self, event: PipelineEvent) -> None:
        """Write what a person wants to see of the event."""
        name = event.action
        match event.body:
            case events.Submitted():
                self.begin(event.body)
            case events.LogText(data=data, source=source):
                if source is not Source.COMMANDS:
                    self.flush(name)
                for line in self.lines.setdefault(name, Lines()).feed(data):
                    self.write(name, line)
            case events.Started() if event.attempt > 1:
                self.notice(name, f"attempt {event.attempt}")
            case session_events.StageChanged(stage=stage, detail=detail):
                self.stage(name, stage, detail)
            case session_events.CommandStarted(index=index):
                self.command(name, index)
            case session_events.ArtifactSummary(files=files, bytes=size, left_out_files=left_out):
                rest = f", {left_out} left out" if left_out else ""
                self.notice(name, f"{files} files, {amount(size)}{rest}")
            case events.ActionEnded(outcome=outcome, seconds=seconds):
                report = ActionReport(name, outcome=outcome, seconds=seconds)
                words = " ".join(part for part in (outcome.result.value, report.why) if part)
                self.notice(name, f"{words}{f': {outcome.message}' if outcome.message else ''}")

    def begin(self, submitted: events.Submitted) -> None:
        """Learn who there is."""
        names = [plan.name for plan in submitted.actions]
        width = max(map(len, names))
        for plan in submitted.actions:
            self.commands[plan.name] = plan.commands
            self.prefixes[plan.name] = f"{plan.name:<{width}} │ " if len(names) > 1 else ""

    def stage(self, name: str, stage: Stage, detail: str) -> None:
        """Say that a stage began, or what it waits for."""
        if detail:
            self.notice(name, f"{stage.value}: {detail}")
        elif self.stages.get(name) is not stage and stage is not Stage.COMMANDS:
            self.notice(name, stage.value)
        self.stages[name] = stage

    def command(self, name: str, index: int) -> None:
        """Say which command begins."""
        commands = self.commands.get(name, ())
        text = commands[index - 1] if 0 < index <= len(commands) else ""
        first, _, rest = text.strip().partition("\n")
        self.flush(name)
        self.write(name, f"$ {first}{' ...' if rest else ''}")

    def notice(self, name: str, text: str) -> None:
        """Write a line of our own, after what is left of a line of the log."""
        self.flush(name)
        self.write(name, f"· {text}")

    def flush(self, name: str) -> None:
        """Write what is left of a line without an end."""
        for line in self.lines.setdefault(name, Lines()).flush():
            self.write(name, line)

    def write(self, name: str, line: str) -> None:
        """Write one line with its prefix."""
        self.stream.write(f"{self.prefixes.get(name, '')}{line}\n")
        self.stream.flush()

    def close(self, report: Report) -> None:
        """Write what failed, the table, and where the files are."""
        for name in list(self.lines):
            self.flush(name)
        final_summary.close(self.console, report)
