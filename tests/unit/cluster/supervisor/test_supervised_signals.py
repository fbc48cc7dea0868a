"""The real supervisor under cancel, timeout and deletion, and while it waits for the files container."""

from __future__ import annotations

import pytest

from agent.cluster.supervisor import command as command_module
from agent.cluster.supervisor.termination import Ending
from tests.unit.cluster.supervisor.shells import SHELLS, Options, Result, container

LONG = 20.0
# The child says when it runs: a TERM between `echo` and the start of the next program would not reach that one.
SLEEPS = "sh -c 'echo ready; exec sleep 1000'"
STUBBORN = "sh -c 'trap \"\" TERM; echo ready; while :; do sleep 0.05; done'"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """Each shell in turn."""
    return str(request.param)


def interrupted(shell: str, *commands: str, grace: float = LONG, uid: int | None = None) -> Result:
    """Run commands until one says that it is ready, interrupt them, and return what came of it."""
    with container(shell, *commands, options=Options(uid=uid)) as running:
        assert running.prints(b"ready\n")
        running.exec(command_module.interrupt(grace))
        return running.wait()


def without_the_shell_s_own_words(result: Result) -> str:
    return result.text.replace("Terminated\n", "").replace("Killed\n", "")


@pytest.mark.parametrize("uid", [None, 1234])
def test_a_sleeping_command_ends_at_once(shell: str, uid: int | None) -> None:
    result = interrupted(shell, "echo a", SLEEPS, "echo no", uid=uid)
    assert result.code == 143
    assert result.verdict.message == "command 2 failed with exit code 143 (SIGTERM)"
    assert without_the_shell_s_own_words(result) == "a\nready\n"


def test_nothing_more_is_run_even_if_the_command_goes_on_after_a_failure(shell: str) -> None:
    result = interrupted(shell, f"{SLEEPS} || true; echo no", "echo no")
    assert result.code == 143
    assert without_the_shell_s_own_words(result) == "ready\n"


def test_the_user_s_traps_run_and_are_heard(shell: str) -> None:
    result = interrupted(shell, f"trap 'echo term' TERM; trap 'echo bye >&2' EXIT; {SLEEPS}", "echo no")
    assert result.code == 143
    assert without_the_shell_s_own_words(result) == "ready\nterm\nbye\n"


def test_an_exit_trap_runs_and_nothing_of_ours_is_traced(shell: str) -> None:
    result = interrupted(shell, f"trap 'echo bye >&2' EXIT; set -x; {SLEEPS}", "echo no")
    assert result.code == 143
    assert without_the_shell_s_own_words(result).endswith("ready\nbye\n")
    assert "143" not in result.text


def test_a_command_that_cleans_up_is_given_the_time(shell: str) -> None:
    child = "sh -c 'trap \"sleep 0.2; echo cleaned; exit 7\" TERM; echo ready; while :; do sleep 0.02; done'"
    result = interrupted(shell, child, "echo no")
    assert result.code == 143
    assert without_the_shell_s_own_words(result) == "ready\ncleaned\n"


def test_a_command_that_ignores_term_is_killed_after_the_grace(shell: str) -> None:
    result = interrupted(shell, STUBBORN, "echo no", grace=0.1)
    assert result.code == 137
    assert without_the_shell_s_own_words(result) == "ready\n"
    assert result.announced == "s1 l:137"


def test_a_shell_that_ignores_term_is_killed_after_the_grace(shell: str) -> None:
    result = interrupted(shell, "trap '' TERM; echo ready; while :; do sleep 0.05; done", "echo no", grace=0.1)
    assert result.code == 137


@pytest.mark.parametrize("command", ["echo ready; while :; do :; done", "echo ready; kill -STOP $$"])
def test_a_busy_or_stopped_shell_ends_at_once(shell: str, command: str) -> None:
    assert interrupted(shell, command, "echo no").code == 143


def test_the_grace_passes_without_a_sleep_in_the_image(shell: str) -> None:
    with container(shell, STUBBORN) as running:
        assert running.prints(b"ready\n")
        assert running.exec(command_module.interrupt(0.1), PATH="/nonexistent") in (0, -9)
        assert running.wait().code == 137


def test_a_deletion_tells_the_commands_and_leaves(shell: str) -> None:
    with container(shell, SLEEPS, "echo no") as running:
        assert running.prints(b"ready\n")
        running.exec(command_module.pre_stop())
        assert running.wait().code == 143


@pytest.mark.parametrize("answer", [0, 9])
def test_a_deletion_is_written_down_whatever_the_commands_answer(shell: str, answer: int) -> None:
    child = f"trap 'exit {answer}' TERM; echo ready; while :; do sleep 0.02; done"
    with container(shell, child, "echo no") as running:
        assert running.prints(b"ready\n")
        running.exec(command_module.pre_stop())
        result = running.wait()
    assert result.code == answer
    assert result.ending == Ending(1, left_by_exit=True, exit_code=answer, received_term=True)


def test_an_end_of_its_own_is_not_told(shell: str) -> None:
    with container(shell, "kill -TERM $$") as running:
        assert running.wait().ending == Ending(1, exit_code=143)


def test_nothing_runs_until_the_files_container_is_up(shell: str) -> None:
    with container(shell, "echo a", options=Options(wait_for_files=True)) as running:
        assert not running.prints(b"\x1e", within=0.2)
        running.let_go()
        result = running.wait()
    assert result.verdict.succeeded
    assert result.text == "a\n"


def test_the_wait_for_files_needs_no_sleep_in_the_image(shell: str) -> None:
    options = Options(wait_for_files=True, env={"PATH": "/nonexistent"})
    with container(shell, "echo a", options=options) as running:
        assert not running.prints(b"\x1e", within=0.1)
        running.let_go()
        assert running.wait().text == "a\n"


@pytest.mark.parametrize(
    "stop", [command_module.pre_stop(), command_module.interrupt(LONG)], ids=["deletion", "cancel"]
)
def test_the_wait_for_files_ends_with_a_term(shell: str, stop: list[str]) -> None:
    with container(shell, "echo no", options=Options(wait_for_files=True)) as running:
        assert not running.prints(b"\x1e", within=0.1)
        running.exec(stop)
        result = running.wait()
    assert result.code == 143
    assert result.ending is None
    assert result.announced == "l:143"
