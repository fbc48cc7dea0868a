"""Build the command of container `action`: the supervisor that runs the user's commands by the image's own /bin/sh.

PID 1 of the container is /bin/sh with `supervisor.sh` as its script. PID 1 waits for container `helper`, starts the
commands shell as a foreground child, and waits for the end of that shell. Then PID 1 kills all other processes, prints
the marker that ends the log, and exits with the code of the commands shell.

The commands shell runs `setup.sh`, then all commands in one list, which names each command in turn without a loop. The
user's `break` would leave a loop, and a function would change what `local` and `return` mean. The list is one compound
command. The shell parses it before any command runs, so aliases and `set -v` do not affect it.

TERM reaches the commands by exec (`interrupt`, `pre_stop`), never through PID 1. `termination.py` reads the record that
the supervisor leaves in the termination message. The scripts are read at import, and everything else here is pure.
"""

from __future__ import annotations

import importlib.resources
import math
from typing import TYPE_CHECKING

from agent.cluster.supervisor.markers import NONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

# Maximum number of bytes of one command. Linux refuses longer arguments (MAX_ARG_STRLEN, with the final NUL).
MAX_COMMAND_BYTES = 128 * 1024 - 1
# Maximum number of commands of one action. The script names every command and is one argument, whose length Linux
# limits.
MAX_COMMAND_COUNT = 1000

# Values of `pipefail`. Wanted: on if the image's shell supports it. Required: the action fails if the shell does not.
PIPEFAIL_OFF, PIPEFAIL_WANTED, PIPEFAIL_REQUIRED = "", "wanted", "required"
# Name of the variable that carries the action's SHELLOPTS to the commands shell. bash obeys a variable SHELLOPTS at its
# start. Under that name, the variable would make bash trace or end the supervisor, or skip all its commands (`noexec`).
SHELL_OPTIONS = "__sealci_shellopts"


def script(name: str) -> str:
    """Return a shell script of this package without its whole-line comments, which the pod does not need."""
    text = importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))


SUPERVISOR = script("supervisor.sh")
SETUP = script("setup.sh")
INTERRUPT = script("interrupt.sh")
# PID 1 gets TERM first, as in interrupt.sh. The hook always exits with 0, because the kubelet reports a failed hook.
PRE_STOP = "set +e; kill -TERM 1; kill -TERM -1; exit 0"


def entrypoint(
    commands: Sequence[str],
    *,
    nonce: str,
    workspace: str,
    wait_for_files: bool,
    pipefail: str = "",
    ready_path: str = "/.sealci/ready",
    termination_path: str = "/dev/termination-log",
    shell: str = "/bin/sh",
) -> list[str]:
    """Return the whole `command` of container `action`.

    `pipefail` is one of the constants `PIPEFAIL_OFF`, `PIPEFAIL_WANTED` and `PIPEFAIL_REQUIRED`.

    Raises:
        ValueError: there are no commands or too many, a command holds a NUL, or the nonce is malformed.
    """
    if not NONCE.fullmatch(nonce):
        raise ValueError("a nonce is 8 to 64 letters and digits")
    if not 1 <= len(commands) <= MAX_COMMAND_COUNT:
        raise ValueError(f"{len(commands)} commands; from 1 to {MAX_COMMAND_COUNT} are possible")
    if any("\0" in command for command in commands):
        raise ValueError("a command cannot hold a NUL")
    ready = ready_path if wait_for_files else ""
    setting = [shell, SETUP, unrolled_list(len(commands)), nonce, workspace, ready, termination_path, pipefail]
    return [shell, "-c", SUPERVISOR, "sealci", *setting, *commands]


def pipefail_mode(asked: bool | None, setting: bool) -> str:
    """Return the `pipefail` mode of an action. If the action does not ask for a mode, the agent's setting decides."""
    if asked is None:
        return PIPEFAIL_WANTED if setting else PIPEFAIL_OFF
    return PIPEFAIL_REQUIRED if asked else PIPEFAIL_OFF


def variable_name(name: str) -> str:
    """Return the name under which an environment variable of the action reaches the container."""
    return SHELL_OPTIONS if name == "SHELLOPTS" else name


def unrolled_list(count: int) -> str:
    """Return the script of the commands shell, which runs `count` commands.

    The script is one line, so that line numbers in messages count the lines of the user's commands.
    """
    turns = (
        f'\\eval "$__sealci_flags$__sealci_{number}"; {{ __sealci {number + 1} "$?"; }} >/dev/null 2>&1 || \\exit; '
        for number in range(1, count + 1)
    )
    begin = "{ __sealci 1 0; } >/dev/null 2>&1 || \\exit; "
    return f'eval "$1"; {{ {begin}{"".join(turns)}\\eval "$__sealci_flags"; }}'


def interrupt(grace: float) -> list[str]:
    """Return the exec command that ends the user's commands: TERM to all processes, KILL after `grace` seconds.

    The exec command returns after the KILL. If the user's commands end earlier, the exec command is killed with the
    container.
    """
    return ["/bin/sh", "-c", INTERRUPT, "sealci", f"{grace:.3f}", str(math.ceil(grace))]


def pre_stop() -> list[str]:
    """Return the `preStop` hook, which sends TERM to the commands when the pod is deleted, and returns at once."""
    return ["/bin/sh", "-c", PRE_STOP]
