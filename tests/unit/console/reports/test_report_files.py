"""Report files for CI systems: JUnit XML and Markdown, also with special characters in logs and messages."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from agent.console.reports import report_files
from agent.console.reports.run_report import Report
from agent.domain.errors import Reason, Stage
from agent.domain.events import Source, StageChanged
from agent.domain.outcome import Outcome, Result
from agent.pipeline.events import (
    ActionEnded,
    ActionPlan,
    Ended,
    EventBody,
    FileStored,
    LogText,
    PipelineEvent,
    Started,
    Submitted,
)

SPECIAL = "<&>]]> | `x` \x1b[31mred\x1b[0m \x00\x08 é\n"


def sample_report() -> Report:
    names = ("good", "bad", "lost", "never")
    failed = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 127, 1, f"broke {SPECIAL}")
    evicted = Outcome(Result.FAILED, Stage.COMMANDS, Reason.EVICTED, message="the node was full")
    never = Outcome(Result.CANCELLED, Stage.ADMISSION, Reason.CANCELLED, message="not run: it needs bad")
    body_by_action: list[tuple[str, EventBody]] = [
        ("", Submitted("p", tuple(ActionPlan(name, (), ("one\ntwo",)) for name in names), "/f")),
        *((name, Started("x")) for name in names[:3]),
        ("good", StageChanged(Stage.SETUP)),
        ("good", StageChanged(Stage.COMMANDS)),
        ("good", FileStored(b"out/f", 2048, b"")),
        ("good", ActionEnded(Outcome(Result.SUCCEEDED, Stage.ARTIFACTS, exit_code=0), 4.0)),
        ("bad", LogText(SPECIAL.encode(), Source.COMMANDS, 0)),
        ("bad", LogText(b"Containers:\n", Source.AGENT, 0)),
        ("bad", ActionEnded(failed, 1.5)),
        ("lost", ActionEnded(evicted, 1.0)),
        ("never", ActionEnded(never, 0.0)),
        ("", Ended()),
    ]
    report = Report()
    for number, (name, what) in enumerate(body_by_action, 1):
        report.add(PipelineEvent("id", number, 100.0 + number, what, name, 1))
    return report


def test_junit_separates_failures_of_users_from_errors_of_the_infrastructure() -> None:
    suite = ET.fromstring(report_files.junit(sample_report()))[0]  # noqa: S314 - our own
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == (
        "4",
        "1",
        "1",
        "1",
    )
    cases = {case.get("name"): case for case in suite}
    assert list(cases["good"]) == []
    assert cases["good"].get("time") == "4.000"
    failure = cases["bad"][0]
    assert (failure.tag, failure.get("type")) == ("failure", "COMMAND_FAILED")
    assert failure.text is not None
    assert failure.text.splitlines() == ["<&>]]> | `x` red  é"]
    assert (cases["lost"][0].tag, cases["never"][0].tag) == ("error", "skipped")


def test_markdown_has_a_table_and_a_block_for_each_failure() -> None:
    lines = report_files.markdown(sample_report()).splitlines()
    assert lines[0] == "## p: 1 succeeded, 2 failed, 1 cancelled in 13.0 s"
    assert lines[4] == "| good | ✅ succeeded | 1.0 s | 2.0 s |  | 4.0 s | 1 file, 2.0 KiB |"
    assert lines[5].startswith("| bad | ❌ failed COMMAND_FAILED (exit code 127) |")
    assert "### ❌ bad: broke \\<&\\>\\]\\]\\> \\| \\`x\\` red  é " in lines
    assert "    $ one" in lines
    assert "    <&>]]> | `x` red  é" in lines
    assert "- `out/f` 2.0 KiB" in lines


def test_the_suffix_of_the_file_selects_the_format() -> None:
    assert report_files.format_for(Path("a.XML")) is report_files.junit
    with pytest.raises(ValueError, match=r"must end with \.xml or \.md"):
        report_files.format_for(Path("a.html"))


def test_a_report_file_that_cannot_be_written_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(report_files.ReportFailed, match="cannot be written"):
        report_files.write(sample_report(), tmp_path / "file" / "x.md")
