"""Print the end of a pipeline: a block for each failure, the table of actions, and where the files are.

Pure: every function turns a report into objects that the library rich prints. The reader wants to know what broke and
what to try.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from agent.console.formatting import RESULT_COLOURS, duration_text, path_text, plural, rate_text, size_text
from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, RenderableType

    from agent.console.run_report import ActionReport, Report

# Maximum number of files that are listed for each action.
SHOWN_FILES = 50
# Number of columns below which the table has no times of stages.
NARROW = 90
STAGES = {Stage.SETUP: "set-up", Stage.COMMANDS: "commands", Stage.ARTIFACTS: "copying"}
# What the user can try after each of these exit codes of a command.
HINTS = {
    126: "The file is not executable: chmod +x it, or run it through its interpreter.",
    127: "The program is not found. Check that the image has it on its PATH.",
    137: "The process was killed, often because of memory. Request more memory: resources: {memory: 1Gi}.",
}
# What the user can try after each of these reasons. A failed set-up has no entry, because its own log holds the cause.
ADVICE = {
    Reason.COMMAND_FAILED: "--shell-on-failure opens a shell in the workspace, --keep leaves the whole environment.",
    Reason.OUT_OF_MEMORY: "Request more memory: resources: {memory: 1Gi}, or use less in the commands.",
    Reason.DEADLINE_EXCEEDED: "Set a longer timeout (timeout: 30m), or look with --keep what the commands wait for.",
    Reason.ARTIFACTS_FAILED: "Check `artifacts`: paths are relative to the workspace. --keep leaves the workspace.",
    Reason.INTERNAL: "Run the pipeline again with --verbose, which shows the agent's own log.",
}


def failure_blocks(report: Report) -> Iterator[RenderableType]:
    """Yield a block for each action that failed."""
    for action in report.failed_actions:
        yield Text()
        yield failure_block(action, only_option=len(report.actions) > 1)


def failure_block(action: ActionReport, *, only_option: bool) -> RenderableType:
    """Return the message, command, stage, end of the log, notes about the pod, and advice of a failed action.

    `only_option`: the pipeline has other actions, so `--only` is worth a hint.
    """
    outcome = action.outcome
    if outcome is None:
        raise AssertionError("an action without an outcome has not failed")
    message = f": {outcome.message or action.reason_text}"
    parts: list[RenderableType] = [Text.assemble(("✘ ", "bold red"), (action.name, "bold"), (message, "red"))]
    command = action.command_text(outcome.command)
    if command:
        parts += gutter(
            [f"$ {line}" if not number else f"  {line}" for number, line in enumerate(command.splitlines())]
        )
    spent = duration_text(sum(action.stages.values()))
    parts.append(Text(f"  {action.reason_text}, in the {outcome.stage.value} stage, after {spent}", "dim"))
    if action.tail:
        parts += [Text(f"  the last {plural(len(action.tail), 'line')} of its log:", "dim"), *gutter(action.tail, "")]
    if action.notes:
        parts += [Text(f"  its pod{f' ({action.environment})' if action.environment else ''}:", "dim")]
        parts += gutter(action.notes)
    parts += [Text.assemble(("  try: ", "cyan"), each) for each in advice(action, only_option=only_option)]
    return Group(*parts)


def gutter(lines: Iterable[str], style: str = "dim") -> list[Text]:
    """Return lines with a bar on their left."""
    return [Text.assemble(("  │ ", "red"), Text.from_ansi(line, style=style)) for line in lines]


def advice(action: ActionReport, *, only_option: bool) -> Iterator[str]:
    """Yield what a user can try after this failure, one sentence each."""
    outcome = action.outcome
    if outcome is None:
        return
    if outcome.exit_code in HINTS and outcome.reason is Reason.COMMAND_FAILED:
        yield HINTS[outcome.exit_code]
    if outcome.reason in ADVICE:
        yield ADVICE[outcome.reason]
    if only_option:
        yield f"--only {action.name} runs this action alone."


def outcome_table(report: Report, *, stages: bool) -> Table:
    """Return the table with one row for each action. `stages`: with the time of each stage."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("action", "outcome", "reason", *(STAGES.values() if stages else ()), "time", "files"):
        table.add_column(column, no_wrap=True, justify="left" if column in ("action", "outcome", "reason") else "right")
    for action in report.actions.values():
        result = action.outcome.result if action.outcome else None
        shown = Text(result.value, RESULT_COLOURS[result]) if result else Text("not ended", "red")
        times = stage_times(action) if stages else []
        files = f"{len(action.files)} ({size_text(action.size)})" if action.files else ""
        table.add_row(Text(action.name), shown, Text(action.reason_text), *times, duration_text(action.seconds), files)
    return table


def stage_times(action: ActionReport) -> list[str]:
    """Return the duration of each stage of `STAGES`. "" for a stage that the action did not reach."""
    return [duration_text(action.stages[each]) if each in action.stages else "" for each in STAGES]


def file_lines(report: Report) -> Iterator[Text]:
    """Yield where logs and files are. Yield nothing if logs and files were not kept."""
    if not report.folder:
        return
    yield Text(f"\nlogs and files: {report.folder}", "dim")
    for action in report.actions.values():
        for path, size in list(action.files.items())[:SHOWN_FILES]:
            yield Text(f"  {action.name}/{path_text(path)}  {size_text(size)}")
        if len(action.files) > SHOWN_FILES:
            yield Text(f"  {action.name}/...  {len(action.files) - SHOWN_FILES} more", "dim")


def files_text(action: ActionReport) -> str:
    """Return how many files were copied. From 1 MiB on, also the rate. "" without files."""
    if not action.files:
        return ""
    text = f"{plural(len(action.files), 'file')}, {size_text(action.size)}"
    seconds = action.stages.get(Stage.ARTIFACTS, 0.0)
    # A small copy needs most of its time for its start, so the rate of a small copy means nothing.
    return f"{text} at {rate_text(action.size, seconds)}" if action.size >= 1 << 20 and seconds else text


def print_summary(console: Console, report: Report, *, quiet: bool = False) -> None:
    """Print blocks, table and files. With `quiet`, print nothing if every action succeeded, and never the files."""
    if not report.actions:
        return
    success = all(each.outcome and each.outcome.result is Result.SUCCEEDED for each in report.actions.values())
    if quiet and success:
        return
    for block in failure_blocks(report):
        console.print(block)
    console.print()
    console.print(outcome_table(report, stages=console.width >= NARROW))
    if not quiet:
        for line in file_lines(report):
            console.print(line)
