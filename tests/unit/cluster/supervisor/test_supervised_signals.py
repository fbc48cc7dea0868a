"""The real supervisor during cancellation, timeout and deletion, and while it waits for container `helper`."""

from __future__ import annotations

import pytest

from agent.cluster.supervisor import command as command_module
from agent.cluster.supervisor.termination import Ending
from tests.unit.cluster.supervisor.shells import SHELLS, Options, Result, container

LONG = 20.0
# The child itself prints `ready`. If the shell printed it, TERM could arrive before the child has started.
SLEEPS = "sh -c 'echo ready; exec sleep 1000'"
STUBBORN = "sh -c 'trap \"\" TERM; echo ready; while :; do sleep 0.05; done'"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def interrupted(shell: str, *commands: str, grace: float = LONG, uid: int | None = None) -> Result:
    """Run commands until one prints `ready`, interrupt them, and return the result.

    `grace` is the number of seconds between TERM and KILL. The commands run as user `uid`, if given.
    """
    with container(shell, *commands, options=Options(uid=uid)) as running:
        assert running.prints(b"ready\n")
        running.interrupt(grace)
        return running.wait()


def without_shell_messages(result: Result) -> str:
    return result.text.replace("Terminated\n", "").replace("Killed\n", "")


@pytest.mark.parametrize("uid", [None, 1234])
def test_a_sleeping_command_ends_at_once(shell: str, uid: int | None) -> None:
    result = interrupted(shell, "echo a", SLEEPS, "echo no", uid=uid)
    assert result.code == 143
    assert result.verdict.message == "command 2 failed with exit code 143 (SIGTERM)"
    assert without_shell_messages(result) == "a\nready\n"


def test_no_further_command_runs_after_an_interrupted_child(shell: str) -> None:
    result = interrupted(shell, f"{SLEEPS} || true; echo no", "echo no")
    assert result.code == 143
    assert without_shell_messages(result) == "ready\n"


def test_the_user_s_traps_run_and_their_output_is_logged(shell: str) -> None:
    result = interrupted(shell, f"trap 'echo term' TERM; trap 'echo bye >&2' EXIT; {SLEEPS}", "echo no")
    assert result.code == 143
    assert without_shell_messages(result) == "ready\nterm\nbye\n"


def test_an_exit_trap_runs_and_the_supervisor_is_not_traced(shell: str) -> None:
    result = interrupted(shell, f"trap 'echo bye >&2' EXIT; set -x; {SLEEPS}", "echo no")
    assert result.code == 143
    assert without_shell_messages(result).endswith("ready\nbye\n")
    assert "143" not in result.text


def test_a_command_has_the_grace_period_for_its_clean_up(shell: str) -> None:
    child = "sh -c 'trap \"sleep 0.2; echo cleaned; exit 7\" TERM; echo ready; while :; do sleep 0.02; done'"
    result = interrupted(shell, child, "echo no")
    assert result.code == 143
    assert without_shell_messages(result) == "ready\ncleaned\n"


def test_a_command_that_ignores_term_is_killed_after_the_grace_period(shell: str) -> None:
    result = interrupted(shell, STUBBORN, "echo no", grace=0.1)
    assert result.code == 137
    assert without_shell_messages(result) == "ready\n"
    assert result.markers == "s1 l:137"


def test_shellopts_of_the_image_do_not_keep_the_commands_alive() -> None:
    """With errexit, the script that ends the commands would stop at its first `kill` that finds no process."""
    options = Options(image_env={"SHELLOPTS": "errexit:nounset"})
    with container("bash", STUBBORN, "echo no", options=options) as running:
        assert running.prints(b"ready\n")
        assert running.exec(command_module.interrupt(0.1, running.order), SHELLOPTS="errexit:nounset") in (0, -9)
        assert running.wait().code == 137
    with container("bash", SLEEPS, options=options) as running:
        assert running.prints(b"ready\n")
        # The end of PID 1 may kill the hook before the hook exits.
        assert running.exec(command_module.pre_stop(running.order), SHELLOPTS="errexit:nounset") in (0, -9)
        assert running.wait().code == 143


def test_a_shell_that_ignores_term_is_killed_after_the_grace_period(shell: str) -> None:
    result = interrupted(shell, "trap '' TERM; echo ready; while :; do sleep 0.05; done", "echo no", grace=0.1)
    assert result.code == 137


@pytest.mark.parametrize("command", ["echo ready; while :; do :; done", "echo ready; kill -STOP $$"])
def test_a_busy_or_stopped_shell_ends_at_once(shell: str, command: str) -> None:
    assert interrupted(shell, command, "echo no").code == 143


def test_the_grace_period_needs_no_sleep_in_the_image(shell: str) -> None:
    with container(shell, STUBBORN) as running:
        assert running.prints(b"ready\n")
        assert running.exec(command_module.interrupt(0.1, running.order), PATH="/nonexistent") in (0, -9)
        assert running.wait().code == 137


def test_the_pre_stop_hook_ends_the_commands(shell: str) -> None:
    with container(shell, SLEEPS, "echo no") as running:
        assert running.prints(b"ready\n")
        running.pre_stop()
        assert running.wait().code == 143


@pytest.mark.parametrize("answer", [0, 9])
def test_the_record_of_a_deletion_does_not_depend_on_the_exit_code(shell: str, answer: int) -> None:
    child = f"trap 'exit {answer}' TERM; echo ready; while :; do sleep 0.02; done"
    with container(shell, child, "echo no") as running:
        assert running.prints(b"ready\n")
        running.pre_stop()
        result = running.wait()
    assert result.code == answer
    assert result.ending == Ending(1, left_by_exit=True, exit_code=answer, received_term=True)


def test_a_signal_from_a_command_is_not_recorded_as_term_to_pid_1(shell: str) -> None:
    with container(shell, "kill -TERM $$") as running:
        assert running.wait().ending == Ending(1, exit_code=143)


def test_no_command_runs_before_the_order_says_so(shell: str) -> None:
    with container(shell, "echo a", options=Options(start=False)) as running:
        running.wait_for_pid_1()
        assert not running.prints(b"\x1e", within=0.2)
        running.start_commands()
        result = running.wait()
    assert result.verdict.succeeded
    assert result.text == "a\n"


def test_the_wait_for_the_helper_needs_no_sleep_in_the_image(shell: str) -> None:
    options = Options(late_helper=True, image_env={"PATH": "/nonexistent"})
    with container(shell, "echo a", options=options) as running:
        assert running.process.poll() is None
        running.start_helper()
        assert running.wait().text == "a\n"


STOPS = pytest.mark.parametrize("stop", ["deletion", "cancel"])


@STOPS
@pytest.mark.parametrize("late", [False, True], ids=["before the start", "before the helper"])
def test_the_wait_for_the_start_ends_with_a_term(shell: str, stop: str, late: bool) -> None:
    with container(shell, "echo no", options=Options(late_helper=late, start=False)) as running:
        if not late:
            running.wait_for_pid_1()
        assert not running.prints(b"\x1e", within=0.2)
        running.pre_stop() if stop == "deletion" else running.interrupt(LONG)
        result = running.wait()
    assert result.code == 143
    assert result.ending is None
    assert "echo" not in result.text
