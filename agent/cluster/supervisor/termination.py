"""Decide whether the commands succeeded, from the container's exit code and the supervisor's record.

The supervisor rewrites the termination message of container `action` at each step. The message records which command
runs, whether all commands ran, whether the shell was left by `exit`, and whether PID 1 received TERM. Each record
carries the session's nonce, because the user's commands can write to the same file. The functions perform no I/O.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, replace

# Exit code of PID 1 when it refuses to start the commands. The termination message then gives the reason in a sentence.
# supervisor.sh uses the same number.
REFUSED = 125

RECORD = re.compile(r"sealci (\w+) (started|exit|completed|end|told_to_end) (\d{1,9})\b")


@dataclass(frozen=True, slots=True)
class Ending:
    """The supervisor's record of one session, read from the termination message.

    `command` is the number of the last started command, from 1; None if the user's commands overwrote the record.
    `exit_code` is the exit code that PID 1 chose; None if PID 1 was killed.
    `received_term` is True if PID 1 had received TERM before it chose its exit code.
    """

    command: int | None
    completed: bool = False
    left_by_exit: bool = False
    exit_code: int | None = None
    received_term: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the commands succeeded. `command` is the number of the deciding command, 0 if it is unknown."""

    succeeded: bool
    command: int
    message: str


def read_termination(message: str, nonce: str) -> Ending | None:
    """Read the record of a session from a termination message.

    Returns None if the message holds no record with this nonce, which means that no command was started.
    """
    ending: Ending | None = None
    for found, word, number in RECORD.findall(message):
        if found != nonce:
            continue
        if word in ("end", "told_to_end"):
            ending = replace(ending or Ending(None), exit_code=int(number), received_term=word == "told_to_end")
        else:
            ending = Ending(int(number), word == "completed", word == "exit")
    return ending


def judge(exit_code: int, ending: Ending | None, command_count: int) -> Verdict:
    """Decide whether the commands succeeded.

    Exit code 0 is not enough: a command that replaces the shell by `exec` also ends with 0.
    """
    command = (ending.command if ending else None) or 0
    if exit_code != 0:
        return Verdict(False, command, describe_failure(exit_code, ending))
    if ending is None or ending.command is None:
        return Verdict(False, 0, "the shell left with code 0 but no record that it ran the commands")
    if ending.completed or ending.left_by_exit or command >= command_count:
        return Verdict(True, command, "")
    rest = "command" if command_count - command == 1 else "commands"
    message = (
        f"the shell was replaced in command {command} (by `exec`, or left by other means than a plain `exit`): "
        f"{command_count - command} more {rest} did not run"
    )
    return Verdict(False, command, message)


def describe_failure(exit_code: int, ending: Ending | None) -> str:
    """Return a sentence for people about an exit code other than 0."""
    if ending is None:
        return f"no command was started (exit code {exit_code})"
    if ending.command is None:
        subject = "the commands failed"
    elif ending.completed:
        subject = "the shell failed after the last command"
    else:
        subject = f"command {ending.command} failed"
    return f"{subject} with exit code {exit_code}{hint(exit_code)}"


def hint(exit_code: int) -> str:
    """Return what a shell means by an exit code, in parentheses; "" if the code has no common meaning."""
    if exit_code == 126:
        return " (not executable)"
    if exit_code == 127:
        return " (not found)"
    names = {128 + each: each.name for each in signal.Signals}
    return f" ({names[exit_code]})" if exit_code in names else ""
