"""What stands under a pipeline when it has ended: a block for each failure, the table, and where the files are.

Pure: a report in, things that rich prints out. Read top down by somebody who wants to know what broke and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from agent.console.formatting import RESULT_COLOURS, amount, count, duration, rate, readable
from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, RenderableType

    from agent.console.run_report import ActionReport, Report

SHOWN_FILES = 50
NARROW = 90
STAGES = {Stage.SETUP: "set-up", Stage.COMMANDS: "commands", Stage.ARTIFACTS: "copying"}
HINTS = {
    126: "The file is not executable: chmod +x it, or run it through its interpreter.",
    127: "The program is not found: is it in the image, and on its PATH?",
    137: "Something killed it; when it is memory, ask for more: resources: {memory: 1Gi}.",
}
ADVICE = {
    Reason.COMMAND_FAILED: "--shell-on-failure opens a shell in its workspace, --keep leaves the whole environment.",
    Reason.OUT_OF_MEMORY: "Ask for more: resources: {memory: 1Gi}, or let it use less.",
    Reason.DEADLINE_EXCEEDED: "Give it more time (timeout: 30m), or find out with --keep what it waits for.",
    Reason.ARTIFACTS_FAILED: "Check `artifacts`: paths are relative to the workspace; --keep leaves it.",
    Reason.INTERNAL: "Run it again with --verbose: that shows the agent's own log.",
}


def failures(report: Report) -> Iterator[RenderableType]:
    """Return a block for each action that failed."""
    for action in report.unsuccessful:
        yield Text()
        yield failure(action, many=len(report.actions) > 1)


def failure(action: ActionReport, *, many: bool) -> RenderableType:
    """Say which command, with which code, after which last words, what the pod says, and what to try."""
    outcome = action.outcome
    if outcome is None:
        raise AssertionError("an action that has not ended has not failed")
    parts: list[RenderableType] = [
        Text.assemble(("✘ ", "bold red"), (action.name, "bold"), (f": {outcome.message or action.why}", "red"))
    ]
    command = action.text_of(outcome.command)
    if command:
        parts += gutter(
            [f"$ {line}" if not number else f"  {line}" for number, line in enumerate(command.splitlines())]
        )
    after = sum(action.stages.values())
    parts.append(Text(f"  {action.why}, in the {outcome.stage.value} stage, after {duration(after)}", "dim"))
    if action.tail:
        parts += [Text(f"  the last {count(len(action.tail), 'line')} of its log:", "dim"), *gutter(action.tail, "")]
    if action.notes:
        parts += [Text(f"  its pod{f' ({action.environment})' if action.environment else ''}:", "dim")]
        parts += gutter(action.notes)
    parts += [Text.assemble(("  try: ", "cyan"), each) for each in advice(action, many=many)]
    return Group(*parts)


def gutter(lines: Iterable[str], style: str = "dim") -> list[Text]:
    """Set lines apart."""
    return [Text.assemble(("  │ ", "red"), Text.from_ansi(line, style=style)) for line in lines]


def advice(action: ActionReport, *, many: bool) -> Iterator[str]:
    """Say what can be tried; a failed set-up says it in its own log."""
    outcome = action.outcome
    if outcome is None:
        return
    if outcome.exit_code in HINTS and outcome.reason is Reason.COMMAND_FAILED:
        yield HINTS[outcome.exit_code]
    if outcome.reason in ADVICE:
        yield ADVICE[outcome.reason]
    if many:
        yield f"--only {action.name} runs it alone."


def table(report: Report, *, stages: bool) -> Table:
    """Return how each action went."""
    result = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("action", "outcome", "reason", *(STAGES.values() if stages else ()), "time", "files"):
        result.add_column(
            column, no_wrap=True, justify="left" if column in ("action", "outcome", "reason") else "right"
        )
    for action in report.actions.values():
        ended = action.outcome.result if action.outcome else None
        shown = Text(ended.value, RESULT_COLOURS[ended]) if ended else Text("not ended", "red")
        times = [duration(action.stages[each]) if each in action.stages else "" for each in STAGES] if stages else []
        files = f"{len(action.files)} ({amount(action.size)})" if action.files else ""
        result.add_row(Text(action.name), shown, Text(action.why), *times, duration(action.seconds), files)
    return result


def files(report: Report) -> Iterator[Text]:
    """Say where logs and files are."""
    if not report.folder:
        return
    yield Text(f"\nlogs and files: {report.folder}", "dim")
    for action in report.actions.values():
        for path, size in list(action.files.items())[:SHOWN_FILES]:
            yield Text(f"  {action.name}/{readable(path)}  {amount(size)}")
        if len(action.files) > SHOWN_FILES:
            yield Text(f"  {action.name}/...  {len(action.files) - SHOWN_FILES} more", "dim")


def collected(action: ActionReport) -> str:
    """Say how many files came, and how fast if that was long enough to tell."""
    if not action.files:
        return ""
    text = f"{count(len(action.files), 'file')}, {amount(action.size)}"
    seconds = action.stages.get(Stage.ARTIFACTS, 0.0)
    return f"{text} at {rate(action.size, seconds)}" if action.size >= 1 << 20 and seconds else text


def close(console: Console, report: Report, *, quiet: bool = False) -> None:
    """Print all of it; `quiet`: nothing but what did not succeed."""
    if not report.actions:
        return
    well = all(each.outcome and each.outcome.result is Result.SUCCEEDED for each in report.actions.values())
    if quiet and well:
        return
    for block in failures(report):
        console.print(block)
    console.print()
    console.print(table(report, stages=console.width >= NARROW))
    if not quiet:
        for line in files(report):
            console.print(line)
