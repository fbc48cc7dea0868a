"""What is shown of a pipeline: lines for people, objects for programs."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest

from agent.actions import (
    ArtifactSummary,
    CommandFinished,
    CommandStarted,
    Cursor,
    Outcome,
    Result,
    Source,
    StageChanged,
)
from agent.errors import Reason, Stage
from agent.local.console import JsonView, LineView, amount, duration, open_view, visible
from agent.local.events import ActionEnded, ActionPlan, Ended, FileStored, LogText, PipelineEvent, Started, Submitted
from agent.local.messages import decode, encode
from agent.local.report import ExitCode, Report

if TYPE_CHECKING:
    from agent.local.events import Happening

SUCCEEDED = Outcome(Result.SUCCEEDED, Stage.ARTIFACTS, exit_code=0, command=1)
FAILED = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 3, 1, "command 1 ended with 3")
EVICTED = Outcome(Result.FAILED, Stage.COMMANDS, Reason.EVICTED)
CANCELLED = Outcome(Result.CANCELLED, Stage.COMMANDS, Reason.CANCELLED)


def log(data: bytes, source: Source = Source.COMMANDS) -> LogText:
    return LogText(data, source, 0)


def plans(*names: str) -> Submitted:
    return Submitted("p", tuple(ActionPlan(name, (), ("make\nmore", "true")) for name in names), "/folder")


def events(*happened: tuple[str, Happening]) -> list[PipelineEvent]:
    return [PipelineEvent("id", number, 1.0, what, name, 1) for number, (name, what) in enumerate(happened, 1)]


def lines(*happened: tuple[str, Happening]) -> list[str]:
    output = io.StringIO()
    view = LineView(output, coloured=False)
    for event in events(*happened):
        view.show(event)
    return output.getvalue().splitlines()


def objects(*happened: tuple[str, Happening]) -> list[dict[str, object]]:
    output = io.StringIO()
    view = JsonView(output)
    for event in events(*happened):
        view.show(event)
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_several_actions_have_prefixes_of_one_width() -> None:
    assert lines(
        ("", plans("build", "it")),
        ("it", log(b"one\n")),
        ("build", log(b"two\n")),
        ("it", log(b"thr")),
        ("it", log(b"ee\n")),
    ) == ["it    │ one", "build │ two", "it    │ three"]


def test_one_action_has_no_prefix_and_commands_are_announced() -> None:
    assert lines(
        ("", plans("a")),
        ("a", StageChanged(Stage.SETUP, "pulling image x")),
        ("a", StageChanged(Stage.COMMANDS)),
        ("a", CommandStarted(1, Cursor())),
        ("a", log(b"no end")),
        ("a", CommandStarted(2, Cursor())),
        ("a", ArtifactSummary(2, 3 << 20, (), 1)),
        ("a", ActionEnded(FAILED, 2.0)),
    ) == [
        "· setup: pulling image x",
        "$ make ...",
        "no end",
        "$ true",
        "· 2 files, 3.0 MiB, 1 left out",
        "· failed COMMAND_FAILED (exit code 3): command 1 ended with 3",
    ]


@pytest.mark.parametrize(
    ("line", "shown"),
    [("plain", "plain"), ("10%\r20%\r30%", "30%"), ("windows\r", "windows"), ("10%\r20%\r", "20%"), ("", "")],
)
def test_of_a_line_with_carriage_returns_the_last_state_is_shown(line: str, shown: str) -> None:
    assert visible(line) == shown


def test_text_that_comes_in_pieces_or_is_none() -> None:
    whole = "né\n".encode()
    assert lines(("", plans("a")), ("a", log(whole[:2])), ("a", log(whole[2:])), ("a", log(b"\xff\n"))) == ["né", "�"]
    endless = lines(("", plans("a")), ("a", log(b"x" * 100_000)), ("a", log(b"y\n")))
    assert [len(line) for line in endless] == [100_000, 1]


def test_objects_are_exactly_these() -> None:
    assert objects(
        ("", plans("a")),
        ("a", Started("pod.1")),
        ("a", StageChanged(Stage.SETUP, "pulling")),
        ("a", CommandStarted(1, Cursor())),
        ("a", log(b"\xc3")),
        ("a", log(b"\xa9 \xff\r\n")),
        ("a", CommandFinished(1, 3, 0.25, Cursor())),
        ("a", FileStored(b"d/\xff", 5, b"\x01\x02")),
        ("a", log(b"cut \xc3")),
        ("a", ActionEnded(FAILED, 2.0)),
        ("b", ActionEnded(SUCCEEDED, 2.0)),
        ("", Ended()),
    ) == [
        {"event": "submitted", "pipeline": "id", "name": "p", "folder": "/folder"},
        {"event": "stage", "action": "a", "stage": "setup", "detail": "pulling"},
        {"event": "log", "action": "a", "text": "é �\r\n"},
        {"event": "command", "action": "a", "index": 1, "exit_code": 3, "seconds": 0.25},
        {"event": "artifact", "action": "a", "path": "d/�", "size": 5, "sha256": "0102"},
        {"event": "log", "action": "a", "text": "cut "},
        {"event": "log", "action": "a", "text": "�"},
        {
            "event": "finished",
            "action": "a",
            "outcome": "failed",
            "stage": "commands",
            "reason": "COMMAND_FAILED",
            "exit_code": 3,
            "message": "command 1 ended with 3",
        },
        {
            "event": "finished",
            "action": "b",
            "outcome": "succeeded",
            "stage": "artifacts",
            "reason": None,
            "exit_code": 0,
            "message": "",
        },
    ]


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([SUCCEEDED, SUCCEEDED], ExitCode.SUCCEEDED),
        ([SUCCEEDED, FAILED], ExitCode.FAILED),
        ([EVICTED, CANCELLED], ExitCode.INFRASTRUCTURE),
        ([EVICTED, FAILED], ExitCode.FAILED),
        ([SUCCEEDED, CANCELLED], ExitCode.FAILED),
    ],
)
def test_exit_codes(outcomes: list[Outcome], code: ExitCode) -> None:
    report = Report()
    ends: list[tuple[str, Happening]] = [(f"a{n}", ActionEnded(each, 1.0)) for n, each in enumerate(outcomes)]
    for event in events(("", plans(*(name for name, _ in ends))), *ends):
        report.add(event)
    assert report.exit_code is ExitCode.INFRASTRUCTURE, "not ended yet"
    report.add(PipelineEvent("id", 9, 1.0, Ended()))
    assert report.exit_code is code


def test_the_table_names_files_and_where_they_are() -> None:
    output = io.StringIO()
    view, report = LineView(output, coloured=False), Report()
    files = [("a", FileStored(b"f%d" % number, 1, b"")) for number in range(51)]
    for event in events(("", plans("a")), *files, ("a", ActionEnded(SUCCEEDED, 61.0)), ("", Ended())):
        report.add(event)
    view.close(report)
    shown = output.getvalue().splitlines()
    assert shown[2].split() == ["a", "succeeded", "1", "min", "1", "s", "51"]
    assert shown[4] == "logs and files: /folder"
    assert shown[-1] == "  a/...  1 more"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_on_a_terminal_that_wants_them() -> None:
    for output, stream, environ, coloured in (
        ("auto", Terminal(), {}, True),
        ("auto", Terminal(), {"NO_COLOR": "1"}, False),
        ("plain", Terminal(), {}, False),
        ("auto", io.StringIO(), {}, False),
    ):
        view = open_view(output, stream, environ)
        for event in events(("", plans("a", "b")), ("a", log(b"x\n"))):
            view.show(event)
        assert ("\x1b[" in stream.getvalue()) is coloured
    with pytest.raises(ValueError, match="one of auto, plain, json"):
        open_view("xml", io.StringIO(), {})


@pytest.mark.parametrize(
    "what",
    [
        plans("a", "b"),
        Started("pod.1"),
        StageChanged(Stage.SETUP, "x"),
        CommandStarted(2, Cursor()),
        CommandFinished(2, -1, 0.5, Cursor()),
        log(b"\xff", Source.SETUP),
        FileStored(b"\xff", 1, b"2"),
        ArtifactSummary(1, 2, (), 3),
        ActionEnded(FAILED, 1.0),
        ActionEnded(Outcome(Result.CANCELLED, Stage.SETUP), 0.0),
        Ended(),
    ],
    ids=lambda what: type(what).__name__,
)
def test_events_travel_unchanged(what: Happening) -> None:
    event = PipelineEvent("id", 7, 1.5, what, "a", 2)
    assert decode(encode(event)) == event


@pytest.mark.parametrize(("size", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")])
def test_amounts(size: int, shown: str) -> None:
    assert amount(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3720, "1 h 2 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
