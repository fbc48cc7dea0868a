"""How a pipeline went, in the forms that CI systems show: JUnit XML and Markdown. Pure, apart from `write`.

An action is a test case: a failure when it is the user's, an error when it is the infrastructure's, skipped when it was
never run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from agent.console import final_summary
from agent.console.formatting import amount, count, duration, readable
from agent.domain.errors import AgentError, Stage
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agent.console.run_report import ActionReport, Report

MARKS = {Result.SUCCEEDED: "✅", Result.FAILED: "❌", Result.CANCELLED: "⊘"}
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\].*?(?:\x07|\x1b\\)")


class ReportFailed(AgentError):
    """A report could not be written."""


def form(file: Path) -> Callable[[Report], str]:
    """Return what writes a report in the form that a file's name asks for.

    Raises:
        ValueError: its name has no ending that is known.
    """
    try:
        return FORMS[file.suffix.lower()]
    except KeyError:
        raise ValueError(f"{file}: must end with {' or '.join(FORMS)}") from None


def write(report: Report, file: Path) -> None:
    """Write a report to a file.

    Raises:
        ReportFailed: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(form(file)(report), encoding="utf-8")
    except OSError as error:
        raise ReportFailed(f"the report {file} cannot be written: {error.strerror}") from error


def plain(text: str) -> str:
    """Return a text without colours and without what XML cannot hold."""
    return NOT_XML.sub("�", ANSI.sub("", text))


# ---- JUnit


def junit(report: Report) -> str:
    """Return JUnit XML: one suite, a case for each action."""
    suite = ET.Element("testsuite", name=plain(report.name), time=f"{report.seconds:.3f}")
    counts = dict.fromkeys(("failures", "errors", "skipped"), 0)
    for action in report.actions.values():
        case = ET.SubElement(suite, "testcase", classname=plain(report.name), name=action.name)
        case.set("time", f"{action.seconds:.3f}")
        kind = verdict(action)
        if kind:
            counts[{"failure": "failures", "error": "errors"}.get(kind, kind)] += 1
            found = ET.SubElement(case, kind, message=plain(message(action)))
            if kind != "skipped":
                found.set("type", action.outcome.reason.value if action.outcome and action.outcome.reason else "")
                found.text = plain("\n".join([*action.tail, *action.notes]))
    suite.attrib.update({"tests": str(len(report.actions))} | {name: str(each) for name, each in counts.items()})
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def verdict(action: ActionReport) -> str:
    """Return the element for how an action ended, "" for success."""
    outcome = action.outcome
    if outcome is None:
        return "error"
    if outcome.result is Result.CANCELLED:
        return "skipped"
    if outcome.result is Result.SUCCEEDED:
        return ""
    return "error" if outcome.reason and outcome.reason.infrastructure else "failure"


def message(action: ActionReport) -> str:
    """Say in one sentence why an action did not succeed."""
    return (action.outcome.message or action.why) if action.outcome else "not ended"


# ---- Markdown


def markdown(report: Report) -> str:
    """Return a summary as a page: a table, then what failed."""
    title = ", ".join(count_of(report, result) for result in Result if count_of(report, result))
    lines = [f"## {escaped(report.name)}: {title or 'nothing ended'} in {duration(report.seconds)}", ""]
    lines += ["| action | outcome | set-up | commands | copying | time | files |", "|---|---|--:|--:|--:|--:|---|"]
    lines += [row(action) for action in report.actions.values()]
    for action in report.unsuccessful:
        lines += ["", *block(action, many=len(report.actions) > 1)]
    for action in report.actions.values():
        if action.files:
            lines += ["", f"<details><summary>files of {escaped(action.name)}</summary>", ""]
            shown = list(action.files.items())[: final_summary.SHOWN_FILES]
            lines += [f"- `{readable(path)}` {amount(size)}" for path, size in shown]
            lines += ["- ..."] if len(action.files) > len(shown) else []
            lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def count_of(report: Report, result: Result) -> str:
    """Say how many actions ended so, "" for none."""
    number = sum(1 for each in report.actions.values() if each.outcome and each.outcome.result is result)
    return f"{number} {result.value}" if number else ""


def row(action: ActionReport) -> str:
    """Return the line of an action."""
    outcome = action.outcome
    how = f"{MARKS[outcome.result]} {outcome.result.value} {action.why}".strip() if outcome else "not ended"
    stages = (Stage.SETUP, Stage.COMMANDS, Stage.ARTIFACTS)
    times = [duration(action.stages[each]) if each in action.stages else "" for each in stages]
    files = f"{count(len(action.files), 'file')}, {amount(action.size)}" if action.files else ""
    return f"| {' | '.join([escaped(action.name), how, *times, duration(action.seconds), files])} |"


def block(action: ActionReport, *, many: bool) -> Iterator[str]:
    """Say what failed: the command, the end of the log, what the pod says, what to try."""
    yield f"### ❌ {escaped(action.name)}: {escaped(message(action))}"
    command = action.text_of(action.outcome.command) if action.outcome else ""
    text = [*(f"$ {command}".splitlines() if command else []), *action.tail]
    for lines in (text, list(action.notes)):
        if lines:
            yield ""
            # Four spaces: no fence that what was logged could close.
            yield from (f"    {plain(line)}" for line in lines)
    for each in final_summary.advice(action, many=many):
        yield f"\n{escaped(each)}"


def escaped(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", plain(text)).replace("\n", " ")


FORMS = {".xml": junit, ".md": markdown}
