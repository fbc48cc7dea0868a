"""The command line of the supervisor, the record in its termination message, and the verdict.

These tests start no process. `test_supervised.py` runs the real supervisor.
"""

from __future__ import annotations

import pytest

from agent.cluster.supervisor import command as command_module
from agent.cluster.supervisor.termination import Ending, Verdict, judge, read_termination
from agent.domain.json import Object
from tests.unit.cluster.supervisor.shells import NONCE

OTHER = "0ther0ther0ther0"


def order(*commands: str, nonce: str = NONCE, env: dict[str, str] | None = None) -> Object:
    return command_module.order(
        commands, nonce=nonce, env=env or {}, workspace="/workspace", seconds=60.0, log_limit=1 << 20
    )


def test_the_arguments_of_pid_1_hold_nothing_of_the_action() -> None:
    argv = command_module.entrypoint()
    assert argv[:2] == ["/bin/sh", "-c"]
    assert argv[3:] == ["sealci", "/.sealci"]
    assert "sleep" not in " ".join(argv)


def test_the_order_holds_the_commands_unchanged() -> None:
    asked = order("echo 'a' \"$b\"", "", "-x", env={"A": "1", "SHELLOPTS": "xtrace"})
    assert asked["commands"] == ["echo 'a' \"$b\"", "", "-x"]
    assert asked["env"] == {"A": "1"}
    assert asked["shell_options"] == "xtrace"


@pytest.mark.parametrize(
    ("commands", "nonce", "message"),
    [
        ([], NONCE, "0 commands"),
        (["true"] * (command_module.MAX_COMMAND_COUNT + 1), NONCE, "1001 commands"),
        (["a\0b"], NONCE, "NUL"),
        (["true"], "$(reboot) $(reboot)", "nonce"),
    ],
)
def test_invalid_commands_and_nonces_are_refused(commands: list[str], nonce: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order(*commands, nonce=nonce)


@pytest.mark.parametrize(
    ("message", "ending"),
    [
        ("", None),
        ("the user's own words\n", None),
        (f"sealci {OTHER} completed 2\nsealci {OTHER} end 0\n", None),
        (f"sealci {NONCE} started 2\n", Ending(2)),
        (f"sealci {NONCE} started 2\nsealci {NONCE} end 137\n", Ending(2, exit_code=137)),
        (f"sealci {NONCE} started 2\nsealci {NONCE} told_to_end 9\n", Ending(2, exit_code=9, received_term=True)),
        (f"sealci {NONCE} exit 1\nsealci {NONCE} end 0\n", Ending(1, left_by_exit=True, exit_code=0)),
        (f"sealci {NONCE} completed 3\nsealci {NONCE} end 0\n", Ending(3, completed=True, exit_code=0)),
        (
            f"sealci {NONCE} completed 3\nmine, no newline" + f"sealci {NONCE} end 0\n",
            Ending(3, True, False, 0),
        ),
        (f"sealci {NONCE} completed 3\nsealci {OTHER} started 1\n", Ending(3, completed=True)),
        (f"mine\nsealci {NONCE} end 5\n", Ending(None, exit_code=5)),
        (f"ealci {NONCE} started 1", None),
        (f"{'x' * 4000}sealci {NONCE} started 12", Ending(12)),
    ],
)
def test_the_record_is_found_among_the_user_s_own_text(message: str, ending: Ending | None) -> None:
    assert read_termination(message, NONCE) == ending


@pytest.mark.parametrize(
    ("code", "ending", "verdict"),
    [
        (0, Ending(3, completed=True, exit_code=0), Verdict(True, 3, "")),
        (0, Ending(3), Verdict(True, 3, "")),
        (0, Ending(1, left_by_exit=True), Verdict(True, 1, "")),
        (1, Ending(2), Verdict(False, 2, "command 2 failed with exit code 1")),
        (1, Ending(1, left_by_exit=True), Verdict(False, 1, "command 1 failed with exit code 1")),
        (126, Ending(1), Verdict(False, 1, "command 1 failed with exit code 126 (not executable)")),
        (127, Ending(1), Verdict(False, 1, "command 1 failed with exit code 127 (not found)")),
        (137, Ending(3), Verdict(False, 3, "command 3 failed with exit code 137 (SIGKILL)")),
        (255, Ending(1), Verdict(False, 1, "command 1 failed with exit code 255")),
        (
            4,
            Ending(3, completed=True),
            Verdict(False, 3, "the shell failed after the last command with exit code 4"),
        ),
        (2, None, Verdict(False, 0, "no command was started (exit code 2)")),
        (2, Ending(None, exit_code=2), Verdict(False, 0, "the commands failed with exit code 2")),
        (0, None, Verdict(False, 0, "the shell left with code 0 but no record that it ran the commands")),
        (
            0,
            Ending(None),
            Verdict(False, 0, "the shell left with code 0 but no record that it ran the commands"),
        ),
    ],
)
def test_the_verdict_of_an_exit_code_and_a_record(code: int, ending: Ending | None, verdict: Verdict) -> None:
    assert judge(code, ending, 3) == verdict


@pytest.mark.parametrize(("command", "rest"), [(1, "2 more commands did not run"), (2, "1 more command did not run")])
def test_code_0_before_the_last_command_is_no_success(command: int, rest: str) -> None:
    verdict = judge(0, Ending(command, exit_code=0), 3)
    assert not verdict.succeeded
    assert verdict.command == command
    assert verdict.message.startswith(f"the shell was replaced in command {command}")
    assert verdict.message.endswith(rest)


@pytest.mark.parametrize(("grace", "exact", "whole"), [(0, "0.000", "0"), (2.5, "2.500", "3"), (30, "30.000", "30")])
def test_the_grace_period_is_passed_exactly_and_in_whole_seconds(grace: float, exact: str, whole: str) -> None:
    assert command_module.interrupt(grace)[-3:] == [exact, whole, "/.sealci/go"]


def test_the_pre_stop_hook_always_succeeds() -> None:
    assert command_module.pre_stop()[2].endswith("exit 0")
