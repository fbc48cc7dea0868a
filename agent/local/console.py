"""Events of a pipeline for people and programs: coloured or plain lines, or one JSON object a line.

A view lives as long as one pipeline is watched and writes at once what it is told. It only shows: the bytes of a log
are kept elsewhere, so that what is no text is replaced here, and of a progress bar that rewrites its line with carriage
returns the last state is shown.
"""

from __future__ import annotations

import codecs
import json
import os
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from agent import actions
from agent.actions import Result, Source
from agent.errors import Stage
from agent.local import events
from agent.local.report import ActionReport, Report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent.local.events import PipelineEvent

OUTPUTS = ("auto", "plain", "json")
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red", "bright_cyan", "bright_magenta")
RESULT_COLOURS = {Result.SUCCEEDED: "green", Result.FAILED: "red", Result.CANCELLED: "yellow"}
MAX_PARTIAL = 64 << 10
SHOWN_FILES = 50


class View(Protocol):
    """Something that shows a pipeline."""

    def show(self, event: PipelineEvent) -> None:
        """Show the next event."""

    def close(self, report: Report) -> None:
        """Show how it went, after the last event."""


def open_view(output: str, stream: TextIO, environ: dict[str, str] | None = None) -> View:
    """Return the view for an `--output`: auto is coloured on a terminal, unless NO_COLOR says otherwise.

    Raises:
        ValueError: there is no such output.
    """
    environ = dict(os.environ) if environ is None else environ
    if output == "json":
        return JsonView(stream)
    if output in ("auto", "plain"):
        coloured = output == "auto" and stream.isatty() and not environ.get("NO_COLOR")
        return LineView(stream, coloured=coloured)
    raise ValueError(f"--output must be one of {', '.join(OUTPUTS)}, not {output!r}")


def readable(path: bytes) -> str:
    """Return a path as text; what is no UTF-8 is replaced."""
    return path.decode("utf-8", "replace")


class JsonView:
    """One object a line. The texts of an action's log, put together, are its log."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.decoders: dict[str, codecs.IncrementalDecoder] = {}

    def show(self, event: PipelineEvent) -> None:
        """Write the event, if it is one of those that are written."""
        match event.happening:
            case events.Submitted(name=name, folder=folder):
                self.line({"event": "submitted", "pipeline": event.pipeline, "name": name, "folder": folder})
            case events.LogText(data=data):
                self.log(event.action, self.decoder(event.action).decode(data))
            case actions.StageChanged(stage=stage, detail=detail):
                self.write("stage", event.action, stage=stage.value, detail=detail)
            case actions.CommandFinished(index=index, exit_code=code, seconds=seconds):
                self.write("command", event.action, index=index, exit_code=code, seconds=round(seconds, 3))
            case events.FileStored(path=path, size=size, sha256=sha256):
                self.write("artifact", event.action, path=readable(path), size=size, sha256=sha256.hex())
            case events.ActionEnded(outcome=outcome):
                self.log(event.action, self.decoder(event.action).decode(b"", final=True))
                self.write(
                    "finished",
                    event.action,
                    outcome=outcome.result.value,
                    stage=outcome.stage.value,
                    reason=outcome.reason.value if outcome.reason else None,
                    exit_code=outcome.exit_code,
                    message=outcome.message,
                )

    def decoder(self, action: str) -> codecs.IncrementalDecoder:
        """Return the decoder of an action's log: a character may come in two pieces."""
        if action not in self.decoders:
            self.decoders[action] = codecs.getincrementaldecoder("utf-8")("replace")
        return self.decoders[action]

    def log(self, action: str, text: str) -> None:
        """Write text of a log."""
        if text:
            self.write("log", action, text=text)

    def write(self, kind: str, action: str, **values: object) -> None:
        """Write what happened to an action."""
        self.line({"event": kind, "action": action, **values})

    def line(self, values: Mapping[str, object]) -> None:
        """Write one object."""
        self.stream.write(json.dumps(values) + "\n")
        self.stream.flush()

    def close(self, report: Report) -> None:
        """Nothing follows the last event."""


class Lines:
    """Cuts the log of one action into lines to show."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.partial = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that are whole now; an endless one is cut."""
        text = self.partial + self.decoder.decode(data)
        *whole, self.partial = text.split("\n")
        if len(self.partial) > MAX_PARTIAL:
            whole.append(self.partial)
            self.partial = ""
        return [visible(line) for line in whole]

    def flush(self) -> list[str]:
        """Return what is left of a last line without an end."""
        rest = self.partial + self.decoder.decode(b"", final=True)
        self.decoder.reset()
        self.partial = ""
        return [visible(rest)] if rest else []


def visible(line: str) -> str:
    """Return what a terminal would show at last of a line with carriage returns."""
    return line.rstrip("\r").rpartition("\r")[2]


class LineView:
    """Lines as they come, with the name of their action before them when there are several; a table at the end."""

    def __init__(self, stream: TextIO, *, coloured: bool) -> None:
        self.stream = stream
        self.console = Console(
            file=stream,
            force_terminal=coloured,
            no_color=not coloured,
            color_system="auto" if coloured else None,
            highlight=False,
            soft_wrap=True,
        )
        self.coloured = coloured
        self.prefixes: dict[str, str] = {}
        self.lines: dict[str, Lines] = {}
        self.commands: dict[str, tuple[str, ...]] = {}
        self.stages: dict[str, Stage] = {}

    def show(self, event: PipelineEvent) -> None:
        """Write what a person wants to see of the event."""
        name = event.action
        match event.happening:
            case events.Submitted():
                self.begin(event.happening)
            case events.LogText(data=data, source=source):
                style = "" if source is Source.COMMANDS else "dim"
                for line in self.lines.setdefault(name, Lines()).feed(data):
                    self.write(name, line, style)
            case events.Started() if event.attempt > 1:
                self.notice(name, f"attempt {event.attempt}")
            case actions.StageChanged(stage=stage, detail=detail):
                self.stage(name, stage, detail)
            case actions.CommandStarted(index=index):
                self.command(name, index)
            case actions.ArtifactSummary(files=files, bytes=size, left_out_files=left_out):
                rest = f", {left_out} left out" if left_out else ""
                self.notice(name, f"{files} files, {amount(size)}{rest}")
            case events.ActionEnded(outcome=outcome, seconds=seconds):
                self.flush(name)
                report = ActionReport(name, outcome, seconds)
                words = " ".join(part for part in (outcome.result.value, report.why) if part)
                message = f": {outcome.message}" if outcome.message else ""
                self.notice(name, f"{words}{message}", RESULT_COLOURS[outcome.result])

    def begin(self, submitted: events.Submitted) -> None:
        """Learn who there is."""
        names = [plan.name for plan in submitted.actions]
        width = max(map(len, names))
        for number, plan in enumerate(submitted.actions):
            self.commands[plan.name] = plan.commands
            prefix = f"{plan.name:<{width}} │ " if len(names) > 1 else ""
            self.prefixes[plan.name] = self.styled(prefix, COLOURS[number % len(COLOURS)])

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
        self.notice(name, f"$ {first}{' ...' if rest else ''}", "bold")

    def notice(self, name: str, text: str, style: str = "dim") -> None:
        """Write a line of our own, after what is left of a line of the log."""
        self.flush(name)
        marker = "" if text.startswith("$ ") else "· "
        self.write(name, f"{marker}{text}", style)

    def flush(self, name: str) -> None:
        """Write what is left of a line without an end."""
        for line in self.lines.setdefault(name, Lines()).flush():
            self.write(name, line, "")

    def write(self, name: str, line: str, style: str) -> None:
        """Write one line with its prefix."""
        self.stream.write(f"{self.prefixes.get(name, '')}{self.styled(line, style)}\n")
        self.stream.flush()

    def styled(self, text: str, style: str) -> str:
        """Return text with the codes of a style, on a coloured terminal."""
        if not self.coloured or not style or not text:
            return text
        return Style.parse(style).render(text)

    def close(self, report: Report) -> None:
        """Write the table, and where the files are."""
        for name in list(self.lines):
            self.flush(name)
        if not report.actions:
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for column in ("action", "outcome", "reason", "time", "files"):
            table.add_column(column, no_wrap=True, justify="right" if column in ("time", "files") else "left")
        for action in report.actions.values():
            result = action.outcome.result if action.outcome else None
            shown = Text(result.value, RESULT_COLOURS[result]) if result else Text("not ended", "red")
            files = str(len(action.files)) if action.files else ""
            table.add_row(Text(action.name), shown, Text(action.why), duration(action.seconds), files)
        self.console.print()
        self.console.print(table)
        self.files(report)

    def files(self, report: Report) -> None:
        """Write where logs and files are."""
        if not report.folder:
            return
        self.console.print(Text(f"\nlogs and files: {report.folder}", "dim"))
        for action in report.actions.values():
            for path, size in list(action.files.items())[:SHOWN_FILES]:
                self.console.print(Text(f"  {action.name}/{readable(path)}  {amount(size)}"))
            if len(action.files) > SHOWN_FILES:
                self.console.print(Text(f"  {action.name}/...  {len(action.files) - SHOWN_FILES} more", "dim"))


def amount(size: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
