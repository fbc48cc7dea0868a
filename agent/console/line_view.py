"""Show a pipeline as lines, for files, pipes, CI systems and `--output plain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO, assert_never

from rich.console import Console

from agent.console import terminal_text
from agent.console.formatting import clock_text, fault_text, first_line, plural, size_text
from agent.console.reports import final_summary
from agent.console.reports.run_report import ActionReport, cache_text, service_text
from agent.console.terminal_text import LineSplitter
from agent.console.view import View
from agent.domain import events as session_events
from agent.domain.errors import Stage
from agent.domain.events import ServiceState, Source
from agent.pipeline import events

if TYPE_CHECKING:
    from agent.console.reports.run_report import Report
    from agent.pipeline.events import PipelineEvent

# Width of the summary table in characters. Output to a file has no terminal width, so no column is shortened.
SUMMARY_WIDTH = 200


class LineView(View):
    """Writes each line when it arrives, then a summary. With several actions, each line has the action's name.

    With `timestamps`, each line begins with the local time at which the scheduler stored its event.
    """

    def __init__(self, stream: TextIO, *, timestamps: bool = False) -> None:
        self.stream = stream
        self.timestamps = timestamps
        self.time = 0.0
        self.console = Console(
            file=stream,
            force_terminal=False,
            color_system=None,
            highlight=False,
            soft_wrap=True,
            width=SUMMARY_WIDTH,
        )
        self.prefixes: dict[str, str] = {}
        self.splitters: dict[str, LineSplitter] = {}
        self.commands: dict[str, tuple[str, ...]] = {}
        self.stages: dict[str, Stage] = {}

    def show(self, event: PipelineEvent) -> None:
        """Write the lines of an event."""
        name, self.time = event.action, event.time
        match event.body:
            case events.Submitted() as submitted:
                self.set_prefixes(submitted)
            case events.WaitingForAgent(detail=detail):
                self.write_notice(name, f"waiting: {detail}")
            case events.Started():
                self.show_attempt(name, event.attempt)
            case events.LogText() as text:
                self.show_log(name, text)
            case session_events.StageChanged(stage=stage, detail=detail):
                self.show_stage(name, stage, detail)
            case session_events.ServiceChanged() as change:
                self.show_service(name, change)
            case session_events.CacheResult() as result:
                self.write_notice(name, f"cache {result.key}: {cache_text(result)}")
            case session_events.CommandStarted(index=index):
                self.show_command(name, index)
            case session_events.ArtifactSummary() as summary:
                self.show_artifacts(name, summary)
            case events.ActionEnded() as end:
                self.show_end(name, end)
            case session_events.Accepted() | session_events.CommandFinished() | events.FileStored() | events.Ended():
                pass  # The earlier lines and the summary show all that a reader needs of these events.
            case _ as unreachable:
                assert_never(unreachable)

    def set_prefixes(self, submitted: events.Submitted) -> None:
        """Give the lines of every action a prefix of the same width. If the pipeline has one action, use no prefix."""
        names = [plan.name for plan in submitted.actions]
        shown = [terminal_text.one_line(name) for name in names]
        width = max(map(len, shown))
        for plan, name in zip(submitted.actions, shown, strict=True):
            self.commands[plan.name] = plan.commands
            self.prefixes[plan.name] = f"{name:<{width}} │ " if len(names) > 1 else ""

    def show_attempt(self, name: str, attempt: int) -> None:
        """Write the number of an attempt. Write nothing for the first attempt."""
        if attempt > 1:
            self.write_notice(name, f"attempt {attempt}")

    def show_log(self, name: str, text: events.LogText) -> None:
        """Write the lines that a piece of the log completes."""
        if text.source is not Source.COMMANDS:
            # An unfinished line of a command is written first, so that the agent's text is not joined with it.
            self.flush(name)
        for line in self.splitters.setdefault(name, LineSplitter()).feed(text.data):
            self.write(name, line)

    def show_service(self, name: str, change: session_events.ServiceChanged) -> None:
        """Write the new state of a service, unless it starts."""
        if change.state is not ServiceState.STARTING:
            self.write_notice(name, f"service {change.name}: {service_text(change)}")

    def show_stage(self, name: str, stage: Stage, detail: str) -> None:
        """Write that a stage began, or its new detail.

        For stage `commands` nothing is written, because each command writes a line.
        """
        if detail:
            self.write_notice(name, f"{stage.value}: {detail}")
        elif self.stages.get(name) is not stage and stage is not Stage.COMMANDS:
            self.write_notice(name, stage.value)
        self.stages[name] = stage

    def show_command(self, name: str, index: int) -> None:
        """Write the first line of the text of the command that starts now."""
        commands = self.commands.get(name, ())
        text = commands[index - 1] if 0 < index <= len(commands) else ""
        self.flush(name)
        self.write(name, f"$ {first_line(text)}")

    def show_artifacts(self, name: str, summary: session_events.ArtifactSummary) -> None:
        """Write how many files were copied."""
        left_out = f", {summary.left_out_files} left out" if summary.left_out_files else ""
        self.write_notice(name, f"{plural(summary.files, 'file')}, {size_text(summary.bytes)}{left_out}")

    def show_end(self, name: str, end: events.ActionEnded) -> None:
        """Write the outcome of an action."""
        report = ActionReport(name, outcome=end.outcome, seconds=end.seconds)
        if report.result_text == "not run":
            self.write_notice(name, end.outcome.message)
            return
        outcome = " ".join(part for part in (report.result_text, report.reason_text) if part)
        self.write_notice(
            name, f"{outcome}{fault_text(end.outcome)}{f': {end.outcome.message}' if end.outcome.message else ''}"
        )

    def write_notice(self, name: str, text: str) -> None:
        """Write a text that is not from the log. Its further lines are indented, so that none can fake a notice."""
        self.flush(name)
        for number, line in enumerate(terminal_text.lines(text)):
            self.write(name, f"  {line}" if number else f"· {line}")

    def flush(self, name: str) -> None:
        """Write the unfinished line of the log, if there is one."""
        for line in self.splitters.setdefault(name, LineSplitter()).flush():
            self.write(name, line)

    def write(self, name: str, line: str) -> None:
        """Write one line with the prefix of its action."""
        time = f"{clock_text(self.time)} " if self.timestamps else ""
        self.stream.write(f"{time}{self.prefixes.get(name, '')}{line}\n")
        self.stream.flush()

    def close(self, report: Report) -> None:
        """Write unfinished lines and the summary."""
        for name in list(self.splitters):
            self.flush(name)
        # The lines that were written during the run contain the notes about the pods already.
        final_summary.print_summary(self.console, report, notes=False)
