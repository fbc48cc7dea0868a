"""The views that show a pipeline: plain lines and a live tree for people, JSON objects for programs."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from agent.console.formatting import duration_text, size_text
from agent.console.json_view import JsonView
from agent.console.line_view import LineView
from agent.console.live_view import LiveView
from agent.console.open_view import open_view
from agent.console.reports.final_summary import file_lines, outcome_table
from agent.console.reports.run_report import ExitCode, Report
from agent.console.terminal_text import last_state
from agent.console.view import Moving, View
from agent.domain.errors import Reason, Stage
from agent.domain.events import (
    Accepted,
    ArtifactSummary,
    CommandFinished,
    CommandStarted,
    ServiceChanged,
    ServiceState,
    Source,
    StageChanged,
)
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.pipeline.event_codec import decode, encode
from agent.pipeline.events import (
    ActionEnded,
    ActionPlan,
    Ended,
    FileStored,
    LogText,
    PipelineEvent,
    Started,
    Submitted,
    Transfer,
    WaitingForAgent,
)

if TYPE_CHECKING:
    from agent.pipeline.events import EventBody

SUCCEEDED = Outcome(Result.SUCCEEDED, Stage.ARTIFACTS, exit_code=0, command=1)
FAILED = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 3, 1, "command 1 ended with 3")
EVICTED = Outcome(Result.FAILED, Stage.COMMANDS, Reason.EVICTED)
CANCELLED = Outcome(Result.CANCELLED, Stage.COMMANDS, Reason.CANCELLED)


def log(data: bytes, source: Source = Source.COMMANDS) -> LogText:
    return LogText(data, source, 0)


def plans(*names: str) -> Submitted:
    return Submitted("p", tuple(ActionPlan(name, (), ("make\nmore", "true")) for name in names), "/folder")


def events(*bodies: tuple[str, EventBody]) -> list[PipelineEvent]:
    return [PipelineEvent("id", number, 1.0, what, name, 1) for number, (name, what) in enumerate(bodies, 1)]


def lines(*bodies: tuple[str, EventBody]) -> list[str]:
    output = io.StringIO()
    view = LineView(output)
    for event in events(*bodies):
        view.show(event)
    return output.getvalue().splitlines()


def objects(*bodies: tuple[str, EventBody]) -> list[dict[str, object]]:
    output = io.StringIO()
    view = JsonView(output)
    for event in events(*bodies):
        view.show(event)
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_lines_of_several_actions_have_prefixes_of_the_same_width() -> None:
    assert lines(
        ("", plans("build", "it")),
        ("it", log(b"one\n")),
        ("build", log(b"two\n")),
        ("it", log(b"thr")),
        ("it", log(b"ee\n")),
    ) == ["it    │ one", "build │ two", "it    │ three"]


def test_lines_of_a_single_action_have_no_prefix_and_show_each_command() -> None:
    assert lines(
        ("", plans("a")),
        ("a", WaitingForAgent("no agent")),
        ("a", StageChanged(Stage.SETUP, "pulling image x")),
        ("a", ServiceChanged("db", ServiceState.STARTING)),
        ("a", ServiceChanged("db", ServiceState.READY)),
        ("a", StageChanged(Stage.COMMANDS)),
        ("a", CommandStarted(1, Cursor())),
        ("a", log(b"no end")),
        ("a", LogText(b"[db] x\n", Source.SERVICE, 0, "db")),
        ("a", CommandStarted(2, Cursor())),
        ("a", ArtifactSummary(2, 3 << 20, (), 1)),
        ("a", ActionEnded(FAILED, 2.0)),
    ) == [
        "· waiting: no agent",
        "· setup: pulling image x",
        "· service db: ready",
        "$ make ...",
        "no end",
        "[db] x",
        "$ true",
        "· 2 files, 3.0 MiB, 1 left out",
        "· failed COMMAND_FAILED (exit code 3), the user's fault: command 1 ended with 3",
    ]


@pytest.mark.parametrize(
    ("line", "shown"),
    [("plain", "plain"), ("10%\r20%\r30%", "30%"), ("windows\r", "windows"), ("10%\r20%\r", "20%"), ("", "")],
)
def test_a_line_with_carriage_returns_shows_its_last_state(line: str, shown: str) -> None:
    assert last_state(line) == shown


def test_split_characters_are_joined_and_bad_bytes_replaced() -> None:
    whole = "né\n".encode()
    assert lines(("", plans("a")), ("a", log(whole[:2])), ("a", log(whole[2:])), ("a", log(b"\xff\n"))) == ["né", "�"]
    endless = lines(("", plans("a")), ("a", log(b"x" * 100_000)), ("a", log(b"y\n")))
    assert [len(line) for line in endless] == [100_000, 1]


def test_json_tells_the_agents_texts_from_the_commands_output() -> None:
    failure = LogText("[the pod was deleted é]\n".encode(), Source.AGENT, 4)
    assert objects(("", plans("a")), ("a", log(b"cut \xc3")), ("a", failure), ("a", log(b"more\n")))[1:] == [
        {"event": "log", "action": "a", "text": "cut ", "source": "commands"},
        {"event": "log", "action": "a", "text": "�", "source": "commands"},
        {"event": "log", "action": "a", "text": "[the pod was deleted é]\n", "source": "agent"},
        {"event": "log", "action": "a", "text": "more\n", "source": "commands"},
    ]


def test_json_objects_have_exactly_these_keys() -> None:
    assert objects(
        ("", plans("a")),
        ("a", WaitingForAgent("no agent")),
        ("a", Started("pod.1")),
        ("a", StageChanged(Stage.SETUP, "pulling")),
        ("a", ServiceChanged("db", ServiceState.ENDED, 3, "killed for memory")),
        ("a", LogText(b"[db] x\n", Source.SERVICE, 0, "db")),
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
        {"event": "waiting", "action": "a", "detail": "no agent"},
        {"event": "stage", "action": "a", "stage": "setup", "detail": "pulling"},
        {
            "event": "service",
            "action": "a",
            "name": "db",
            "state": "ended",
            "exit_code": 3,
            "message": "killed for memory",
        },
        {"event": "log", "action": "a", "text": "[db] x\n", "source": "service", "service": "db"},
        {"event": "log", "action": "a", "text": "é �\r\n", "source": "commands"},
        {"event": "command", "action": "a", "index": 1, "exit_code": 3, "seconds": 0.25},
        {"event": "artifact", "action": "a", "path": "d/�", "size": 5, "sha256": "0102"},
        {"event": "log", "action": "a", "text": "cut ", "source": "commands"},
        {"event": "log", "action": "a", "text": "�", "source": "commands"},
        {
            "event": "finished",
            "action": "a",
            "outcome": "failed",
            "stage": "commands",
            "reason": "COMMAND_FAILED",
            "fault": "user",
            "exit_code": 3,
            "message": "command 1 ended with 3",
        },
        {
            "event": "finished",
            "action": "b",
            "outcome": "succeeded",
            "stage": "artifacts",
            "reason": None,
            "fault": None,
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
def test_the_worst_outcome_decides_the_exit_code(outcomes: list[Outcome], code: ExitCode) -> None:
    report = Report()
    ends: list[tuple[str, EventBody]] = [(f"a{n}", ActionEnded(each, 1.0)) for n, each in enumerate(outcomes)]
    for event in events(("", plans(*(name for name, _ in ends))), *ends):
        report.add(event)
    assert report.exit_code is ExitCode.INFRASTRUCTURE, "not ended yet"
    report.add(PipelineEvent("id", 9, 1.0, Ended()))
    assert report.exit_code is code


def test_the_summary_lists_files_and_their_folder() -> None:
    output = io.StringIO()
    view, report = LineView(output), Report()
    files = [("a", FileStored(b"f%d" % number, 1, b"")) for number in range(51)]
    for event in events(("", plans("a")), *files, ("a", ActionEnded(SUCCEEDED, 61.0)), ("", Ended())):
        report.add(event)
    view.close(report)
    shown = output.getvalue().splitlines()
    assert shown[2].split() == ["a", "succeeded", "1", "min", "1", "s", "51", "(51", "B)"]
    assert shown[4] == "logs and files: /folder"
    assert shown[-1] == "  a/...  1 more"
    report.local = False
    assert str(next(line for line in file_lines(report) if line.plain)) == (
        "logs and files: on the scheduler's machine, /folder"
    )


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [
        (FAILED, "· failed COMMAND_FAILED (exit code 3), the user's fault: command 1 ended with 3"),
        (EVICTED, "· failed EVICTED, the infrastructure's fault"),
        (CANCELLED, "· cancelled CANCELLED"),
        (SUCCEEDED, "· succeeded"),
    ],
    ids=["user", "infrastructure", "cancelled", "succeeded"],
)
def test_the_outcome_line_names_whose_fault_a_failure_is(outcome: Outcome, shown: str) -> None:
    assert lines(("", plans("a")), ("a", ActionEnded(outcome, 1.0))) == [shown]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def view_of(output: str, stream: io.StringIO, environ: dict[str, str], *, quiet: bool = False) -> View:
    return open_view(output, stream, {"TERM": "xterm-256color", **environ}, quiet=quiet)


@pytest.mark.parametrize(
    ("output", "stream", "environ", "kind"),
    [
        ("auto", Terminal(), {}, LiveView),
        ("auto", Terminal(), {"NO_COLOR": "1"}, LiveView),
        ("auto", Terminal(), {"CI": "true"}, LineView),
        ("auto", Terminal(), {"CI": "false"}, LiveView),
        ("auto", Terminal(), {"TERM": "dumb"}, LineView),
        ("auto", io.StringIO(), {}, LineView),
        ("plain", Terminal(), {}, LineView),
        ("json", Terminal(), {}, JsonView),
    ],
)
def test_output_stream_and_variables_select_the_view(
    output: str, stream: io.StringIO, environ: dict[str, str], kind: type
) -> None:
    assert type(view_of(output, stream, environ)) is kind


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(ValueError, match="one of auto, plain, json"):
        open_view("xml", io.StringIO(), {})


COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38)[;m]")


@pytest.mark.parametrize("environ", [{}, {"NO_COLOR": "1"}], ids=["colours", "no-color"])
def test_no_color_turns_colours_off(environ: dict[str, str]) -> None:
    stream = Terminal()
    view = view_of("auto", stream, environ)
    report = Report()
    for event in events(("", plans("a", "b")), ("a", Started("x")), ("a", ActionEnded(FAILED, 1.0)), ("", Ended())):
        report.add(event)
        view.show(event)
        view.tick()
    view.close(report)
    assert bool(COLOUR.search(stream.getvalue())) is (not environ)


def summary(*bodies: tuple[str, EventBody], quiet: bool = False) -> str:
    output, report = io.StringIO(), Report()
    view = view_of("plain", output, {}, quiet=quiet)
    for event in events(*bodies):
        report.add(event)
        view.show(event)
    view.close(report)
    return output.getvalue()


def test_quiet_prints_nothing_unless_an_action_fails() -> None:
    assert (
        summary(("", plans("a")), ("a", log(b"x\n")), ("a", ActionEnded(SUCCEEDED, 1.0)), ("", Ended()), quiet=True)
        == ""
    )
    output = summary(("", plans("a")), ("a", log(b"x\n")), ("a", ActionEnded(FAILED, 1.0)), ("", Ended()), quiet=True)
    assert output.splitlines()[1] == "✘ a: command 1 ended with 3"


def test_the_block_of_a_failure_has_command_log_pod_and_advice() -> None:
    notes = b"Containers:\n  action (image): terminated: exit code 3\n"
    output = summary(
        ("", plans("a", "b")),
        ("a", Started("x")),
        ("a", Accepted("ns/pod")),
        ("a", StageChanged(Stage.COMMANDS)),
        ("a", log(b"".join(b"line %d\n" % number for number in range(30)))),
        ("a", log(b"last")),
        ("a", log(notes, Source.AGENT)),
        ("a", ActionEnded(FAILED, 1.0)),
        ("", Ended()),
        quiet=True,
    ).splitlines()
    assert output[1:5] == [
        "✘ a: command 1 ended with 3",
        "  │ $ make",
        "  │   more",
        "  COMMAND_FAILED (exit code 3), the user's fault, in the commands stage, after 0.0 s",
    ]
    assert output[5] == "  the last 20 lines of its log:"
    assert output[6:26] == [*(f"  │ line {number}" for number in range(11, 30)), "  │ last"]
    assert [line.split(":")[0] for line in output[26:28]] == ["  try", "  try"], "no notes after a failed command"
    assert "--only a" in output[27]


def test_submit_names_no_option_that_only_run_has() -> None:
    report = Report(local=False)
    for event in events(("", plans("a", "b")), ("a", ActionEnded(FAILED, 1.0)), ("b", ActionEnded(SUCCEEDED, 1.0))):
        report.add(event)
    output = io.StringIO()
    LineView(output).close(report)
    assert "✘ a: command 1 ended with 3" in output.getvalue()
    assert "--" not in output.getvalue()


def test_the_cause_of_a_failed_setup_stands_once() -> None:
    cause = "Failed to apply default image tag"
    bodies: list[tuple[str, EventBody]] = [
        ("", plans("a")),
        ("a", Started("x")),
        ("a", Accepted("ns/pod")),
        ("a", log(f"{cause}\nEvents:\n  back-off\n  back-off\n".encode(), Source.AGENT)),
        (
            "a",
            ActionEnded(Outcome(Result.FAILED, Stage.SETUP, Reason.IMAGE_PULL_FAILED, message=f"image: {cause}"), 1.0),
        ),
        ("", Ended()),
    ]
    output = summary(*bodies, quiet=True)
    assert output.count(cause) == 1
    assert "  its pod (ns/pod):\n  │ Events:\n  │   back-off\n" in output
    assert output.count("back-off") == 1
    plain = io.StringIO()
    view, report = LineView(plain), Report()
    for event in events(*bodies):
        view.show(event)
        report.add(event)
    view.close(report)
    assert plain.getvalue().count("Events:") == 1, "the notes stand in the lines, and not again in the block"


def picture(view: LiveView, now: float = 11.0) -> list[str]:
    output = io.StringIO()
    console = Console(file=output, width=100, height=view.console.height, force_terminal=False)
    console.print(view.picture(now))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def live_view(*bodies: tuple[str, EventBody], height: int = 30) -> LiveView:
    view = LiveView(Console(file=Terminal(), force_terminal=True, width=100, height=height))
    for event in events(*bodies):
        view.show(event)
    return view


def diamond() -> Submitted:
    return Submitted(
        "p",
        (
            ActionPlan("ship", ("unit", "lint"), ("x",)),
            ActionPlan("build", (), ("one", "two")),
            ActionPlan("unit", ("build",), ("x",)),
            ActionPlan("lint", ("build",), ("x",)),
        ),
        "/folder",
    )


def test_the_tree_follows_the_needs() -> None:
    view = live_view(
        ("", diamond()),
        ("ship", WaitingForAgent("no connected agent has the feature services")),
        ("build", Started("x")),
        ("build", StageChanged(Stage.COMMANDS)),
        ("build", CommandStarted(2, Cursor())),
        ("build", log(b"one\n\x1b[31mred\x1b[0m\x1b[2J\x07\n")),
    )
    assert picture(view) == [
        "p  10.0 s  1 running",
        "└── ⠋ build  commands 10.0 s  (2/2) $ two",
        "    │ one",
        "    │ red",
        "    ├── · unit  waiting",
        "    └── · lint  waiting",
        "        └── · ship  waiting: no connected agent has the feature services  needs unit too",
    ]


def test_the_tree_has_a_line_for_each_service_of_a_running_action() -> None:
    view = live_view(
        ("", diamond()),
        ("build", Started("x")),
        ("build", StageChanged(Stage.SETUP, "waiting for service queue: port 6379")),
        ("build", ServiceChanged("db", ServiceState.READY)),
        ("build", ServiceChanged("queue", ServiceState.STARTING)),
        ("build", ServiceChanged("job", ServiceState.ENDED, 1, "killed for memory")),
    )
    assert picture(view)[1:5] == [
        "└── ⠋ build  setup 10.0 s  waiting for service queue: port 6379",
        "      service db  ready 10.0 s",
        "      service queue  starting 10.0 s",
        "      service job  ended with exit code 1: killed for memory 10.0 s",
    ]


def test_the_block_of_a_failed_service_has_its_last_lines() -> None:
    failed = Outcome(Result.FAILED, Stage.SETUP, Reason.SERVICE_FAILED, message="service db ended with exit code 1")
    text = summary(
        ("", plans("a")),
        ("a", Started("x")),
        ("a", StageChanged(Stage.SETUP)),
        ("a", ServiceChanged("db", ServiceState.ENDED, 1)),
        ("a", LogText(b"[db] boom\n[db] bye\n", Source.SERVICE, 0, "db")),
        ("a", ActionEnded(failed, 2.0)),
    )
    assert "✘ a: service db ended with exit code 1" in text
    assert "the last 2 lines of service db:\n  │ [db] boom\n  │ [db] bye\n" in text
    assert "SERVICE_FAILED, the user's fault" in text


def test_an_action_that_has_ended_is_one_line() -> None:
    view = live_view(
        ("", diamond()),
        ("build", Started("x")),
        ("build", StageChanged(Stage.COMMANDS)),
        ("build", log(b"one\n")),
        ("build", StageChanged(Stage.ARTIFACTS)),
        ("build", FileStored(b"f", 5 << 20, b"")),
        ("build", ActionEnded(SUCCEEDED, 9.0)),
        ("unit", Started("x")),
        ("unit", ActionEnded(FAILED, 1.0)),
    )
    shown = picture(view)
    assert shown[1] == "└── ✔ build  9.0 s  commands 0.0 s · copying 0.0 s  1 file, 5.0 MiB"
    assert shown[2] == "    ├── ✘ unit  1.0 s  command 1 ended with 3"


def test_a_file_that_is_being_copied_has_a_bar_and_a_rate() -> None:
    view = live_view(("", diamond()), ("build", Started("x")), ("build", StageChanged(Stage.ARTIFACTS)))
    view.transfers = lambda: {"build": Transfer(1, 30_000_000, b"big.bin", 5, 10, 5.0)}
    bar = f"{'━' * 24}  1 file, 28.6 MiB  6.0 MB/s  big.bin"
    assert picture(view)[1] == f"└── ⠋ build  artifacts 10.0 s  {bar}"
    setup = live_view(("", diamond()), ("build", Started("x")), ("build", StageChanged(Stage.SETUP, "copying 1 file")))
    setup.transfers = view.transfers
    assert picture(setup)[1] == f"└── ⠋ build  setup 10.0 s  {bar}"


def test_what_the_agent_of_a_run_copies_has_a_bar_and_a_rate() -> None:
    moving = Moving(iter((100.0, 102.0, 103.0)).__next__)
    view = live_view(("", diamond()), ("build", Started("x")), ("build", StageChanged(Stage.SETUP, "restoring caches")))
    view.transfers = lambda: moving.transfers
    moving.show("run/build", "cache pip", 0, 48_000_000)
    moving.show("run/build", "cache pip", 12_000_000, 48_000_000)
    bar = f"{'━' * 24}  11.4 MiB  6.0 MB/s  cache pip"
    assert picture(view)[1] == f"└── ⠋ build  setup 10.0 s  {bar}"
    moving.show("run/build", "", 0, 0)
    assert picture(view)[1] == "└── ⠋ build  setup 10.0 s  restoring caches"


def test_a_small_window_shows_running_actions_first() -> None:
    names = [f"a{number}" for number in range(40)]
    ends: list[tuple[str, EventBody]] = [(name, ActionEnded(SUCCEEDED, 1.0)) for name in names[:30]]
    running: list[tuple[str, EventBody]] = [(name, Started("x")) for name in names]
    shown = picture(live_view(("", plans(*names)), *running, *ends, ("a35", log(b"x\n" * 50)), height=20))
    assert len(shown) <= 20
    assert shown[-1].endswith("24 more")
    assert "30 succeeded, 10 running" in shown[0]
    missing = [name for name in names[30:] if not any(f" {name} " in line for line in shown)]
    assert not missing, f"running actions that are not shown: {missing}"


def test_the_log_of_a_single_action_stays_on_the_screen() -> None:
    view = live_view(("", plans("a")), ("a", Started("x")), ("a", CommandStarted(1, Cursor())), ("a", log(b"hello\n")))
    stream = view.console.file
    assert isinstance(stream, Terminal)
    view.hold()
    assert "$ make ..." in stream.getvalue()
    assert "hello" in stream.getvalue()
    assert picture(view) == ["⠋ a  starting 10.0 s"]


def test_standard_error_works_again_after_the_terminal_is_gone() -> None:
    before = sys.stderr
    view = live_view(("", plans("a")), ("a", Started("x")))
    view.tick()
    assert sys.stderr is not before
    view.abandon()
    assert sys.stderr is before


@pytest.mark.parametrize(
    "what",
    [
        plans("a", "b"),
        WaitingForAgent("no agent"),
        Started("pod.1"),
        StageChanged(Stage.SETUP, "x"),
        ServiceChanged("db", ServiceState.ENDED, 3, "killed for memory"),
        ServiceChanged("db", ServiceState.READY),
        LogText(b"[db] a\n", Source.SERVICE, 3, "db"),
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
def test_encoding_and_decoding_keep_every_event(what: EventBody) -> None:
    event = PipelineEvent("id", 7, 1.5, what, "a", 2)
    assert decode(encode(event)) == event


@pytest.mark.parametrize(("size", "shown"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")])
def test_sizes_as_text(size: int, shown: str) -> None:
    assert size_text(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0.0 s"), (59.94, "59.9 s"), (61, "1 min 1 s"), (3720, "1 h 2 min")]
)
def test_durations_as_text(seconds: float, shown: str) -> None:
    assert duration_text(seconds) == shown


@pytest.mark.parametrize("width", [40, 60, 100])
def test_names_and_outcomes_are_readable_in_a_narrow_window(width: int) -> None:
    names = [f"unit-tests-of-the-package-python-3.{minor}-debian" for minor in (9, 10, 11)]
    output = io.StringIO()
    view = LiveView(Console(file=output, width=width))
    failures = [(name, ActionEnded(FAILED, 12.4)) for name in names[:2]]
    for event in events(("", plans(*names)), *failures, (names[2], ActionEnded(SUCCEEDED, 8.0)), ("", Ended())):
        view.report.add(event)
    view.console.print(outcome_table(view.report, width))
    header, *rows = output.getvalue().splitlines()
    assert header.split()[:2] == ["action", "outcome"]
    assert [row.split()[1] for row in rows] == ["failed", "failed", "succeeded"]
    shown = [row.split()[0] for row in rows]
    assert len(set(shown)) == 3, "names that differ at their ends stay apart"
    assert (shown == names) == (width >= 100)
    assert all(len(row) <= width for row in output.getvalue().splitlines())


def test_timestamps_stand_before_each_line_and_in_each_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    bodies = (("", plans("a", "b")), ("a", log(b"one\ntwo\n")), ("a", ActionEnded(FAILED, 1.0)))
    texts = {}
    for output in ("auto", "json"):
        stream = io.StringIO()
        view = open_view(output, stream, {}, timestamps=True)
        for event, seconds in zip(events(*bodies), (0.0, 3661.25, float("nan")), strict=True):
            view.show(replace(event, time=seconds))
        texts[output] = stream.getvalue().splitlines()
    assert texts["auto"][:2] == ["01:01:01.250 a │ one", "01:01:01.250 a │ two"]
    assert texts["auto"][2].startswith("--:--:--.--- a │ · failed")
    assert [json.loads(line)["time"] for line in texts["json"][:2]] == [0.0, 3661.25]
