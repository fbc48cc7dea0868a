"""Print the end of a pipeline: a block for each failure, the table of actions, and where the files are.

Only `print_summary` prints. The other functions turn a report into objects that the library rich can print. A reader of
the summary wants to know what failed and what to try.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from agent.console import terminal_text
from agent.console.formatting import (
    RESULT_COLOURS,
    duration_text,
    fault_text,
    plural,
    rate_text,
    shown_path,
    size_text,
    styled,
    styled_log,
)
from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console, RenderableType
    from rich.text import Text

    from agent.console.reports.run_report import ActionReport, Report

# Maximum number of files that are listed for each action.
SHOWN_FILES = 50
# Number of columns between two columns of the table.
GAP = 2
# Minimum number of columns for the name of an action, however narrow the terminal is.
MIN_NAME = 8
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
    Reason.INPUT_MISSING: "Check `inputs`: each glob names artifacts that the other action has kept.",
    Reason.SERVICE_FAILED: "Check image, env, ports and health of the service. `log: live` shows its whole log.",
    Reason.ARTIFACTS_FAILED: "Check `artifacts`: paths are relative to the workspace. --keep leaves the workspace.",
    Reason.INTERNAL: "Run the pipeline again with --verbose, which shows the agent's own log.",
}


def failure_blocks(report: Report, *, notes: bool) -> Iterator[RenderableType]:
    """Yield a block for each action that failed. `notes`: whether the block shows what is known about the pod."""
    for action in report.failed_actions:
        yield styled()
        only_option = report.local and len(report.actions) > 1
        yield failure_block(action, only_option=only_option, run_options=report.local, notes=notes)


def shown_notes(action: ActionReport) -> list[str]:
    """Return the lines that the agent and the clone logged, each once.

    Lines that the outcome's message holds are left out. Return an empty list if a command failed, because the cause
    then stands in the log of the commands.
    """
    if action.outcome is None or action.outcome.reason is Reason.COMMAND_FAILED:
        return []
    message = action.outcome.message
    return list(dict.fromkeys(line for line in action.notes if not line.strip() or line.strip() not in message))


def failure_block(
    action: ActionReport, *, only_option: bool, run_options: bool = True, notes: bool = True
) -> RenderableType:
    """Return the message, command, stage, end of the log, notes about the pod, and advice of a failed action.

    `only_option`: whether the advice names the option `--only`. `run_options`: whether it names other options of `run`,
    which `submit` does not have. `notes`: whether the notes about the pod are shown.
    """
    outcome = action.outcome
    if outcome is None:
        raise AssertionError("an action without an outcome has not failed")
    # Only the first line of a message stands at the left margin, so that no message can fake a line of the summary.
    first, *rest = terminal_text.lines(outcome.message or action.reason_text)
    parts: list[RenderableType] = [styled(("✘ ", "bold red"), (action.name, "bold"), (f": {first}", "red"))]
    parts += gutter(rest, "red")
    command = terminal_text.lines(action.command_text(outcome.command).strip())
    if any(command):
        parts += gutter([f"$ {line}" if not number else f"  {line}" for number, line in enumerate(command)])
    spent = duration_text(sum(action.stages.values()))
    parts.append(
        styled(
            (f"  {action.reason_text}{fault_text(outcome)}, in the {outcome.stage.value} stage, after {spent}", "dim")
        )
    )
    if action.tail:
        parts += [styled((f"  the last {plural(len(action.tail), 'line')} of its log:", "dim"))]
        parts += gutter(action.tail, "")
    for name, service in action.services.items() if outcome.reason is Reason.SERVICE_FAILED else ():
        if service.tail:
            parts += [styled((f"  the last {plural(len(service.tail), 'line')} of service {name}:", "dim"))]
            parts += gutter(service.tail, "")
    if notes and (lines := shown_notes(action)):
        parts += [styled((f"  its pod{f' ({action.environment})' if action.environment else ''}:", "dim"))]
        parts += gutter(lines)
    parts += [styled(("  try: ", "cyan"), each) for each in advice(action, only_option, run_options)]
    return Group(*parts)


def gutter(lines: Iterable[str], style: str = "dim") -> list[Text]:
    """Return lines with a bar on their left."""
    return [styled(("  │ ", "red"), styled_log(line, style)) for line in lines]


def advice(action: ActionReport, only_option: bool, run_options: bool = True) -> Iterator[str]:
    """Yield what a user can try after the failure of an action.

    `only_option`: also name the option `--only`. `run_options`: also name other options of `run`.
    """
    outcome = action.outcome
    if outcome is None:
        return
    if outcome.exit_code in HINTS and outcome.reason is Reason.COMMAND_FAILED:
        yield HINTS[outcome.exit_code]
    if outcome.reason in ADVICE and (run_options or "--" not in ADVICE[outcome.reason]):
        yield ADVICE[outcome.reason]
    if only_option:
        yield f"--only {action.name} runs this action alone."


def outcome_table(report: Report, width: int) -> Table:
    """Return the table with one row for each action, in at most `width` columns of the terminal.

    If the table is too wide, columns are left out: first the times of stages, then the reason (the block of the
    failure shows it too), then the caches, then the files. Then names are cut in their middle. The outcome is never
    cut.
    """
    actions = list(report.actions.values())
    columns: dict[str, list[Text]] = {
        "action": [styled(action.name) for action in actions],
        "outcome": [outcome_cell(action) for action in actions],
        "reason": [styled(action.reason_text) for action in actions],
    }
    times = [stage_times(action) for action in actions]
    columns |= {name: [styled(each[number]) for each in times] for number, name in enumerate(STAGES.values())}
    columns["time"] = [styled(duration_text(action.seconds)) for action in actions]
    if any(action.caches for action in actions):
        columns["cache"] = [styled(action.caches_text) for action in actions]
    columns["files"] = [
        styled(f"{len(action.files)} ({size_text(action.size)})" if action.files else "") for action in actions
    ]
    for droppable in (STAGES.values(), ["reason"], ["cache"], ["files"]):
        if table_width(columns) > width:
            columns = {name: cells for name, cells in columns.items() if name not in droppable}
    room = width - table_width({name: cells for name, cells in columns.items() if name != "action"}) - GAP
    columns["action"] = [cut_middle(name, max(room, MIN_NAME)) for name in columns["action"]]
    table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True, justify="left" if name in ("action", "outcome", "reason") else "right")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def outcome_cell(action: ActionReport) -> Text:
    result = action.outcome.result if action.outcome else None
    return styled((action.result_text, RESULT_COLOURS[result] if result else "red"))


def table_width(columns: Mapping[str, list[Text]]) -> int:
    """Return the width of a table with these columns, with a gap behind each."""
    return sum(GAP + max([len(name), *(cell.cell_len for cell in cells)]) for name, cells in columns.items())


def cut_middle(name: Text, width: int) -> Text:
    """Return a name in at most `width` columns. Names of actions often differ at their ends only."""
    if name.cell_len <= width:
        return name
    half = (width - 1) // 2
    return styled(f"{name.plain[: width - 1 - half]}…{name.plain[len(name.plain) - half :]}")


def stage_times(action: ActionReport) -> list[str]:
    """Return the duration of each stage of `STAGES`. "" for a stage that the action did not reach."""
    return [duration_text(action.stages[each]) if each in action.stages else "" for each in STAGES]


def file_lines(report: Report) -> Iterator[Text]:
    """Yield lines that name the folders of logs and files. Yield nothing if logs and files were not kept."""
    if not report.folder:
        return
    yield styled()
    place = "" if report.local or report.copied else "on the scheduler's machine, "
    yield styled((f"logs and files: {place}{terminal_text.quoted(report.folder)}", "dim"))
    for action in report.actions.values():
        for path, size in list(action.files.items())[:SHOWN_FILES]:
            yield styled(f"  {action.name}/{shown_path(path)}  {size_text(size)}")
        if len(action.files) > SHOWN_FILES:
            yield styled((f"  {action.name}/...  {len(action.files) - SHOWN_FILES} more", "dim"))


def files_text(action: ActionReport) -> str:
    """Return how many files were copied, and the rate if they hold 1 MiB or more. Return "" without files."""
    if not action.files:
        return ""
    text = f"{plural(len(action.files), 'file')}, {size_text(action.size)}"
    seconds = action.stages.get(Stage.ARTIFACTS, 0.0)
    # A small copy needs most of its time for its start, so the rate of a small copy means nothing.
    return f"{text} at {rate_text(action.size, seconds)}" if action.size >= 1 << 20 and seconds else text


def print_summary(console: Console, report: Report, *, quiet: bool = False, notes: bool = True) -> None:
    """Print the blocks of failures, the table of actions, and where the files are.

    With `quiet`, print nothing if every action succeeded, and never print the files. `notes`: whether to print what is
    known about the pods of failed actions.
    """
    if not report.actions:
        return
    success = all(each.outcome and each.outcome.result is Result.SUCCEEDED for each in report.actions.values())
    if quiet and success:
        return
    for block in failure_blocks(report, notes=notes):
        console.print(block)
    console.print()
    console.print(outcome_table(report, console.width))
    if not quiet:
        for line in file_lines(report):
            console.print(line)
