"""Write the result of a pipeline in formats that CI systems show: JUnit XML and Markdown.

Only `write` has side effects. In JUnit each action is a test case. A reason that is the user's fault becomes a failure,
and a reason that is the infrastructure's fault becomes an error. A cancelled action is skipped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from agent.console import terminal_text
from agent.console.formatting import duration_text, plural, shown_path, size_text
from agent.console.reports import final_summary
from agent.domain.errors import AgentError
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.console.reports.run_report import ActionReport, Report

MARKS = {Result.SUCCEEDED: "✅", Result.FAILED: "❌", Result.CANCELLED: "⊘"}
# Characters that XML 1.0 does not allow.
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class ReportFailed(AgentError):
    """A report file cannot be written."""


def format_for(file: Path) -> Callable[[Report], str]:
    """Return the function that makes the text of a report file, by the file's suffix.

    Raises:
        ValueError: no format has this suffix.
    """
    try:
        return FORMATS[file.suffix.lower()]
    except KeyError:
        raise ValueError(f"{file}: must end with {' or '.join(FORMATS)}") from None


def write(report: Report, file: Path) -> None:
    """Write a report to a file, and create the file's folder.

    Raises:
        ReportFailed: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(format_for(file)(report), encoding="utf-8")
    except OSError as error:
        raise ReportFailed(f"the report {file} cannot be written: {error.strerror}") from error


def plain(text: str) -> str:
    """Return the text without control characters. U+FFFD replaces other characters that XML does not allow."""
    return NOT_XML.sub("�", "\n".join(terminal_text.lines(text)))


# ---- reports as JUnit XML


def junit(report: Report) -> str:
    """Return JUnit XML with one suite, and a case for each action."""
    suite = ET.Element("testsuite", name=plain(report.name), time=f"{report.seconds:.3f}")
    counts = dict.fromkeys(("failures", "errors", "skipped"), 0)
    for action in report.actions.values():
        case = ET.SubElement(suite, "testcase", classname=plain(report.name), name=plain(action.name))
        case.set("time", f"{action.seconds:.3f}")
        kind = junit_element(action)
        if kind:
            counts[{"failure": "failures", "error": "errors"}.get(kind, kind)] += 1
            element = ET.SubElement(case, kind, message=plain(message(action)))
            if kind != "skipped":
                element.set("type", action.outcome.reason.value if action.outcome and action.outcome.reason else "")
                element.text = plain("\n".join([*action.tail, *final_summary.shown_notes(action)]))
    suite.attrib.update({"tests": str(len(report.actions))} | {name: str(each) for name, each in counts.items()})
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def junit_element(action: ActionReport) -> str:
    """Return the name of the JUnit element for an outcome. "" for success."""
    outcome = action.outcome
    if outcome is None:
        return "error"
    if outcome.result is Result.CANCELLED or action.result_text == "not run":
        return "skipped"
    if outcome.result is Result.SUCCEEDED:
        return ""
    return "error" if outcome.reason and outcome.reason.infrastructure else "failure"


def message(action: ActionReport) -> str:
    """Return why an action did not succeed, in one sentence."""
    return (action.outcome.message or action.reason_text) if action.outcome else "not ended"


# ---- reports as Markdown


def markdown(report: Report) -> str:
    """Return a Markdown page with a table, a block for each failure, and the files."""
    counts = ", ".join(result_count(report, result) for result in Result if result_count(report, result))
    title = f"{counts or 'nothing ended'} in {duration_text(report.seconds)}"
    lines = [f"## {escape(report.name)}: {title}", ""]
    lines += ["| action | outcome | set-up | commands | copying | time | files |", "|---|---|--:|--:|--:|--:|---|"]
    lines += [table_row(action) for action in report.actions.values()]
    for action in report.failed_actions:
        lines += ["", *failure_block(action, only_option=len(report.actions) > 1)]
    for action in report.actions.values():
        if action.files:
            lines += ["", f"<details><summary>files of {escape(action.name)}</summary>", ""]
            shown = list(action.files.items())[: final_summary.SHOWN_FILES]
            lines += [f"- {code(shown_path(path))} {size_text(size)}" for path, size in shown]
            lines += ["- ..."] if len(action.files) > len(shown) else []
            lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def result_count(report: Report, result: Result) -> str:
    """Return how many actions have a result, as in "2 failed". "" for none."""
    number = sum(1 for each in report.actions.values() if each.outcome and each.outcome.result is result)
    return f"{number} {result.value}" if number else ""


def table_row(action: ActionReport) -> str:
    """Return the row of an action in the table."""
    outcome = action.outcome
    shown = f"{MARKS[outcome.result]} {action.result_text} {action.reason_text}".strip() if outcome else "not ended"
    times = final_summary.stage_times(action)
    files = f"{plural(len(action.files), 'file')}, {size_text(action.size)}" if action.files else ""
    return f"| {' | '.join([escape(action.name), shown, *times, duration_text(action.seconds), files])} |"


def failure_block(action: ActionReport, *, only_option: bool) -> Iterator[str]:
    """Yield the message, command, end of the log, notes about the pod, and advice of a failed action."""
    yield f"### ❌ {escape(action.name)}: {escape(message(action))}"
    command = action.command_text(action.outcome.command) if action.outcome else ""
    text = [*(terminal_text.lines(f"$ {command}") if command else []), *action.tail]
    for lines in (text, final_summary.shown_notes(action)):
        if lines:
            yield ""
            # The log is indented by four spaces, because a line of the log could end a fenced code block.
            yield from (f"    {terminal_text.one_line(line)}" for line in lines)
    for each in final_summary.advice(action, only_option):
        yield f"\n{escape(each)}"


def escape(text: str) -> str:
    """Return the text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", plain(text)).replace("\n", " ")


def code(text: str) -> str:
    """Return the text as code. The fence has more backticks than the longest sequence of backticks in the text."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{terminal_text.one_line(text)}{space}{fence}"


FORMATS = {".xml": junit, ".md": markdown}
