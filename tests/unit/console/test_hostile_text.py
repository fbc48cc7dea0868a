"""Attacks on the terminal: names, messages and logs that contain escape sequences.

No output of `sealci-agent` passes such a sequence on.
"""

from __future__ import annotations

import ast
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from agent.console.follower import print_notice
from agent.console.line_view import LineView
from agent.console.live_view import LiveView
from agent.console.open_view import open_view
from agent.console.reports.report_files import junit, markdown
from agent.domain.errors import Reason, Stage
from agent.domain.events import Accepted, Source, StageChanged
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

TITLE, TITLE_8_BIT = "\x1b]0;PWNED\x1b\\", "\x9d0;PWNED\x9c"
CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"
CLEAR, CLEAR_8_BIT = "\x1b[2J\x1b[1;1H", "\x9b2J\x9b1;1H"
RESET = "\x1bc"
BIDI = "\u202egnp.exe\u2066"
FAKE = "all 3 actions succeeded"
ATTACK = f"{TITLE}{TITLE_8_BIT}{CLIPBOARD}{CLEAR}{CLEAR_8_BIT}{RESET}\x7f\x08{BIDI}"
# Sequences of control characters that the program must not write to a terminal. The library rich writes other sequences
# itself: colours, and cursor movements within its live region.
FORBIDDEN = re.compile(
    r"\x1b\]|\x1bc|\x1b\[2J|\x1b\[1;1H|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
)
REFUSED = Outcome(
    Result.FAILED, Stage.SETUP, Reason.REPOSITORY_FAILED, message=f"git: remote: {ATTACK}nothing here\n{FAKE}\n· {FAKE}"
)


def hostile_events() -> list[PipelineEvent]:
    bodies: list[tuple[str, EventBody]] = [
        (
            "",
            Submitted(f"p{ATTACK}", tuple(ActionPlan(n, (), (f"make{ATTACK}\nmore",)) for n in "ab"), f"/out{ATTACK}"),
        ),
        ("a", Started("agent")),
        ("b", Started("agent")),
        ("a", Accepted(f"ns/pod{ATTACK}")),
        ("a", StageChanged(Stage.SETUP, f"pulling {ATTACK}")),
        ("a", LogText(f"\x1b[31mred\x1b[0m{ATTACK}\n".encode(), Source.COMMANDS, 0)),
        ("a", LogText(f"note{ATTACK}\n".encode(), Source.SETUP, 0)),
        ("a", FileStored(f"{ATTACK}name".encode(), 5, b"")),
        ("a", FileStored(f"x\n{FAKE}".encode(), 5, b"")),
        ("a", FileStored(b"tick`s``", 5, b"")),
        ("a", ActionEnded(REFUSED, 2.0)),
        ("b", ActionEnded(Outcome(Result.SUCCEEDED, Stage.ARTIFACTS), 2.0)),
        ("", Ended()),
    ]
    return [PipelineEvent("id", number, 1.0, body, name, 1) for number, (name, body) in enumerate(bodies, 1)]


def plain_output() -> str:
    output = io.StringIO()
    view, live = LineView(output), LiveView(Console(file=io.StringIO()))
    for event in hostile_events():
        view.show(event)
        live.report.add(event)
    view.close(live.report)
    return output.getvalue()


def live_output() -> str:
    output = io.StringIO()
    view = LiveView(Console(file=output, force_terminal=True, width=200, height=50, highlight=False, emoji=False))
    for event in hostile_events():
        view.show(event)
        view.tick()
    view.close(view.report)
    return output.getvalue()


@pytest.mark.parametrize("show", [plain_output, live_output])
def test_no_view_passes_a_control_sequence_on(show: object) -> None:
    output = show()  # type: ignore[operator]
    assert not FORBIDDEN.search(output), FORBIDDEN.findall(output)
    assert "PWNED" not in output.replace(r"\x1b]0;PWNED", "").replace(r"\u009d0;PWNED", "")
    assert "\x1b[31mred" in output, "the colours of a log stay"


@pytest.mark.parametrize("show", [plain_output, live_output])
def test_neither_a_name_nor_a_message_can_fake_a_line(show: object) -> None:
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", show()).splitlines()  # type: ignore[operator]
    assert not [line for line in lines if line.startswith((FAKE, f"· {FAKE}", f"a │ · {FAKE}"))]
    assert any(rf"a/$'x\n{FAKE}'  5 B" in line for line in lines)


def test_a_report_file_holds_no_control_character() -> None:
    live = LiveView(Console(file=io.StringIO()))
    for event in hostile_events():
        live.report.add(event)
    for text in (markdown(live.report), junit(live.report)):
        assert not FORBIDDEN.search(text)
    lines = markdown(live.report).splitlines()
    assert FAKE not in lines
    assert rf"- `$'x\n{FAKE}'` 5 B" in lines
    assert "- ``` tick`s`` ``` 5 B" in lines


def test_a_notice_holds_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    print_notice(f"the scheduler: {ATTACK}\nsealci-agent: {FAKE}")
    assert capsys.readouterr().err == f"sealci-agent: the scheduler: gnp.exe\n  sealci-agent: {FAKE}\n"


@pytest.mark.parametrize("output", ["plain", "json"])
@pytest.mark.parametrize(("variable", "obeyed"), [("GITHUB_ACTIONS", False), ("TF_BUILD", False), ("NONE", True)])
def test_a_log_gives_no_commands_to_the_ci_system_that_shows_it(output: str, variable: str, *, obeyed: bool) -> None:
    # Attack: a log line is a workflow command to the CI system that runs `sealci-agent run`. It could hide a word in
    # the CI system's log, set a variable, or end a step.
    stream = io.StringIO()
    view = open_view(output, stream, {variable: "true"})
    view.show(PipelineEvent("id", 1, 1.0, Submitted("p", (ActionPlan("a", (), ("make",)),), "/out"), "", 1))
    log = b"::add-mask::a\n  ::stop-commands::x\n##vso[task.setvariable]y\n: ##[command]z\nC::method()\n"
    view.show(PipelineEvent("id", 2, 1.0, LogText(log, Source.COMMANDS, 0), "a", 1))
    shown = stream.getvalue()
    commands = re.findall(r"^\s*::|##\[|##vso\[", shown, re.MULTILINE)
    assert bool(commands) == obeyed
    assert "C::method()" in shown
    if output == "json":
        assert [json.loads(line)["event"] for line in shown.splitlines()] == ["submitted", "log"]


def test_a_number_of_thousands_of_digits_in_a_colour_stops_no_view() -> None:
    output = io.StringIO()
    view = LiveView(Console(file=output, force_terminal=True, width=80))
    for event in hostile_events()[:3]:
        view.show(event)
    view.show(PipelineEvent("id", 9, 1.0, LogText(b"\x1b[" + b"9" * 5000 + b"mx\n", Source.COMMANDS, 0), "a", 1))
    view.show(PipelineEvent("id", 10, 1.0, StageChanged(Stage.COMMANDS), "a", 1))
    view.tick()
    view.hold()


def test_only_the_module_at_the_border_makes_styled_texts() -> None:
    makers = [
        file.as_posix()
        for file in Path("agent").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[0] == "Text"
    ]
    assert set(makers) == {"agent/console/formatting.py"}
