"""Commands in three shells: order, failure, exit codes, and commands that change the shell in which they run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, DEBIAN, SHELLS

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

# By the name of a case: the commands, the expected (outcome, reason, exit code) and the expected lines of the log. If
# the lines are None, the test does not check the log.
CASES: dict[str, tuple[list[str], tuple[str, str | None, int | None], list[str] | None]] = {
    "success": (["echo one", "echo two"], ("succeeded", None, 0), ["one", "two"]),
    "kth-fails": (["echo one", "(exit 7)", "echo never"], ("failed", "COMMAND_FAILED", 7), ["one"]),
    "exit-3": (["echo one; exit 3; echo no", "echo never"], ("failed", "COMMAND_FAILED", 3), ["one"]),
    "early-exit-0": (["echo one; exit 0", "echo never"], ("succeeded", None, 0), ["one"]),
    "exec-true": (["echo one", "exec true", "echo never"], ("failed", "COMMAND_FAILED", 0), ["one"]),
    "exec-last": (["echo one", "exec echo two"], ("succeeded", None, 0), ["one", "two"]),
    "cd-and-export": (
        ["mkdir -p sub && cd sub", "export COLOUR=red", 'basename "$PWD"; echo $COLOUR'],
        ("succeeded", None, 0),
        ["sub", "red"],
    ),
    "middle-line": (["echo a\nfalse\necho b", "echo never"], ("failed", "COMMAND_FAILED", 1), ["a"]),
    "order": (
        ["for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; done"],
        ("succeeded", None, 0),
        [f"{stream} {i}" for i in range(1, 6) for stream in ("out", "err")],
    ),
    "own-exit-trap": (["trap 'echo bye' EXIT", "false"], ("failed", "COMMAND_FAILED", 1), ["bye"]),
    "set-x": (["set -x\necho hi", "echo ho"], ("succeeded", None, 0), ["+ echo hi", "hi", "+ echo ho", "ho"]),
    "set-plus-e": (["set +e", "false", "echo never"], ("failed", "COMMAND_FAILED", 1), []),
    "broken-path": (["PATH=/nowhere", "echo still"], ("succeeded", None, 0), ["still"]),
    "overridden": (["echo() { :; }; printf() { :; }; kill() { :; }", "true"], ("succeeded", None, 0), []),
    "closed-stdout": (["exec >&- 2>&-", "true"], ("succeeded", None, 0), []),
    "redirected-stdout": (["exec >/dev/null 2>&1", "echo unseen", "exit 4"], ("failed", "COMMAND_FAILED", 4), []),
    "kill-shell": (["echo one", "kill -9 $$", "echo never"], ("failed", "COMMAND_FAILED", 137), ["one"]),
    "dollars": (
        ["echo $$ | grep -c '^[0-9]*$'; echo '$$' '$(HOME)' '$HOME'"],
        ("succeeded", None, 0),
        ["1", "$$ $(HOME) $HOME"],
    ),
    "code-1": (["exit 1"], ("failed", "COMMAND_FAILED", 1), []),
    "code-2": (["exit 2"], ("failed", "COMMAND_FAILED", 2), []),
    "code-126": (["touch tool; ./tool"], ("failed", "COMMAND_FAILED", 126), None),
    "code-127": (["no-such-program"], ("failed", "COMMAND_FAILED", 127), None),
    "code-143": (["exit 143"], ("failed", "COMMAND_FAILED", 143), []),
    "code-255": (["exit 255"], ("failed", "COMMAND_FAILED", 255), []),
    "signal": (["sh -c 'kill -SEGV $$'"], ("failed", "COMMAND_FAILED", 139), None),
}


@pytest.fixture(scope="module", params=SHELLS)
def reports(request: pytest.FixtureRequest, lab: Lab) -> dict[str, Any]:
    """Run all cases side by side with the shell that the fixture's parameter names. Return the report of each case."""
    image = SHELLS[request.param]
    actions = {
        name: {"image": image, "commands": commands, "artifacts": "none"} for name, (commands, _, _) in CASES.items()
    }
    return lab.run(actions)


@pytest.mark.parametrize("name", CASES)
def test_shell(reports: dict[str, Any], name: str) -> None:
    _, outcome, lines = CASES[name]
    report = reports[name]
    assert report.outcome == outcome, report
    if lines is not None:
        # For a command inside `eval`, bash's `set -x` prints "++" in place of "+".
        assert re.sub(r"^\++", "+", report.text, flags=re.MULTILINE).splitlines() == lines


def test_a_failure_inside_a_pipe_counts_only_with_pipefail(lab: Lab) -> None:
    actions = {name: {"image": image, "commands": ["false | cat"]} for name, image in SHELLS.items()}
    asked = {f"{name}-asked": {**action, "shell": {"pipefail": True}} for name, action in actions.items()}
    reports = lab.run({**actions, **asked})
    assert {reports[name].outcome for name in actions} == {("succeeded", None, 0)}
    assert reports["bash-asked"].outcome == ("failed", "COMMAND_FAILED", 1)
    assert reports["busybox-asked"].outcome == ("failed", "COMMAND_FAILED", 1)
    assert reports["dash-asked"].outcome == ("failed", "INVALID_CONFIGURATION", None)
    assert "has no pipefail" in reports["dash-asked"].finished["message"]


def test_shellopts_act_on_the_commands_only(lab: Lab) -> None:
    actions = {
        value: {"image": SHELLS["bash"], "commands": ["echo a", "echo b"], "env": {"SHELLOPTS": value}}
        for value in ("errexit", "xtrace", "noexec")
    }
    reports = lab.run(actions)
    assert {each.outcome for each in reports.values()} == {("succeeded", None, 0)}
    assert reports["errexit"].text == reports["noexec"].text == "a\nb\n"
    assert reports["xtrace"].text == "++ echo a\na\n++ echo b\nb\n"


def test_an_early_exit_of_bash_without_aliases(lab: Lab) -> None:
    report = lab.one(SHELLS["bash"], "set +o posix; unalias -a", "if true; then exit 0; fi", "echo never")
    assert report.outcome == ("succeeded", None, 0)
    assert report.text == ""


def test_index_and_codes_of_commands(lab: Lab) -> None:
    report = lab.one(BUSYBOX, "true", "sleep 0.2", "(exit 9)", "true")
    assert report.commands == [(1, 0), (2, 0), (3, 9)]
    assert report.finished["stage"] == "commands"
    assert "command 3" in report.finished["message"]


def test_programs_have_the_default_handler_of_sigint(lab: Lab) -> None:
    program = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert lab.one(DEBIAN, f"python3 -c '{program}'").text == "True\n"


def test_a_background_process_with_stdout_does_not_delay_the_end(lab: Lab) -> None:
    report = lab.one(DEBIAN, "sleep 1000 & echo started")
    assert report.outcome == ("succeeded", None, 0)
    assert report.text == "started\n"
