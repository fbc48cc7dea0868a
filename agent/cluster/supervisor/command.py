"""Build the command of container `action`: the supervisor that runs the user's commands by the image's own /bin/sh.

PID 1 of the container is /bin/sh. Its command is short and always the same (`BOOT`). It sources `supervisor.sh` from
the order's folder, into which container `helper` writes the order of the action: commands, variables and secrets. So no
process has the commands among its arguments. PID 1 waits until the helper starts the commands, runs the commands shell
as a foreground child, and waits for the end of that shell. Then PID 1 kills all other processes, prints the marker that
ends the log, and exits with the code of the commands shell.

The commands shell runs `setup.sh`, then all commands in one list, which names the commands one after the other, without
a loop. The user's `break` would leave a loop, and a function would change what `local` and `return` mean. The list is
one compound command. The shell parses it before any command runs, so aliases and `set -v` do not affect it.

TERM reaches the commands by exec (`interrupt`, `pre_stop`), never through PID 1. `termination.py` reads the record that
the supervisor leaves in the termination message. The scripts are read at import. Apart from that, this module performs
no I/O.
"""

from __future__ import annotations

import importlib.resources
import math
from typing import TYPE_CHECKING

from agent.cluster.in_pod.order import GO
from agent.cluster.supervisor.markers import NONCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from agent.domain.json import Object

# Maximum number of commands of one action. The script of the commands shell names every command.
MAX_COMMAND_COUNT = 1000

# Values of `pipefail`. Wanted: on if the image's shell supports it. Required: the action fails if the shell does not.
PIPEFAIL_OFF, PIPEFAIL_WANTED, PIPEFAIL_REQUIRED = "", "wanted", "required"
# Folder of the order in both containers: the scripts and FIFOs by which container `helper` starts the commands.
ORDER_FOLDER = "/.sealci"
# The command of PID 1, for `sh -c`. Argument: the order's folder. The FIFO `go` is created last. The helper usually has
# created it long before. The quotes keep `pgrep -f sleep` from finding PID 1. Some images have no `sleep`: bash and
# busybox then wait in `read -t`, and dash loops without a wait. A failed `sleep 0.02` may mean that `sleep` accepts
# whole seconds only. After TERM, PID 1 skips the `sleep 1`.
BOOT = (
    "trap '__sealci_stopped=143' TERM; "
    'until [ -p "$1/go" ]; do '
    '[ -z "${__sealci_stopped-}" ] || exit 143; '
    'sl""eep 0.02 || [ -n "${__sealci_stopped-}" ] || sl""eep 1 || read -t 0.02 -r __sealci_word <>/dev/ptmx || :; '
    'done 2>/dev/null; . "$1/supervisor"'
)
# Variables that a shell cannot export: bash refuses them or gives them values of its own, and dash checks the value of
# OPTIND.
NOT_EXPORTABLE = frozenset({"BASHOPTS", "BASH_VERSINFO", "EUID", "OPTIND", "PPID", "UID"})
# Seconds to wait, after the commands, for the output of processes that outlive the commands shell.
DRAIN_SECONDS = 1.0


def script(name: str) -> str:
    """Return a shell script of this package without the lines that are comments, which the pod does not need."""
    text = importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if not line.lstrip().startswith("#"))


SUPERVISOR = script("supervisor.sh")
SETUP = script("setup.sh")
INTERRUPT = script("interrupt.sh")
# PID 1 gets TERM first, as in interrupt.sh. The hook always exits with 0, because the kubelet reports a failed hook.
PRE_STOP = 'set +e; kill -TERM 1; [ ! -p "$1" ] || echo stop 1<>"$1"; kill -TERM -1; exit 0'


def entrypoint(folder: str = ORDER_FOLDER, shell: str = "/bin/sh") -> list[str]:
    """Return the whole `command` of container `action`. It is the same for every action."""
    return [shell, "-c", BOOT, "sealci", folder]


def order(
    commands: Sequence[str],
    *,
    nonce: str,
    env: Mapping[str, str],
    secrets: Sequence[str] = (),
    workspace: str,
    seconds: float,
    log_limit: int,
    log_key: int = 0,
    pipefail: str = PIPEFAIL_OFF,
    snapshot: bool = True,
    change_owner: bool = False,
    start: bool = True,
    gate: Object | None = None,
    drain: float = DRAIN_SECONDS,
    termination_path: str = "/dev/termination-log",
    shell: str = "/bin/sh",
) -> Object:
    """Return an action's order, as `in_pod.order` describes it.

    `pipefail` is one of the constants `PIPEFAIL_OFF`, `PIPEFAIL_WANTED` and `PIPEFAIL_REQUIRED`. `secrets` are names.
    `seconds` is the lifetime of container `helper`. `change_owner`: the workspace is given to the user of the commands.
    `gate` is what the commands wait for, as `in_pod.start_gate` describes it, None for nothing.

    Raises:
        ValueError: there are no commands or too many, a command holds a NUL, or the nonce is malformed.
    """
    if not NONCE.fullmatch(nonce):
        raise ValueError("a nonce is 8 to 64 letters and digits")
    if not 1 <= len(commands) <= MAX_COMMAND_COUNT:
        raise ValueError(f"{len(commands)} commands; from 1 to {MAX_COMMAND_COUNT} are possible")
    if any("\0" in command for command in commands):
        raise ValueError("a command cannot hold a NUL")
    return {
        "nonce": nonce,
        "commands": list(commands),
        # bash obeys a variable SHELLOPTS at its start, so options in it could trace or end the script that sets up the
        # commands shell.
        "env": {name: value for name, value in env.items() if name != "SHELLOPTS"},
        "shell_options": env.get("SHELLOPTS"),
        "secrets": list(secrets),
        "workspace": workspace,
        "pipefail": pipefail,
        "shell": shell,
        "termination": termination_path,
        "snapshot": snapshot,
        "change_owner": change_owner,
        "start": start,
        "gate": gate,
        "log_limit": log_limit,
        "log_key": log_key,
        "drain": drain,
        "seconds": seconds,
    }


def pipefail_mode(asked: bool | None, setting: bool) -> str:
    """Return the `pipefail` mode of an action. If the action does not ask for a mode, the agent's setting decides."""
    if asked is None:
        return PIPEFAIL_WANTED if setting else PIPEFAIL_OFF
    return PIPEFAIL_REQUIRED if asked else PIPEFAIL_OFF


def interrupt(grace: float, folder: str = ORDER_FOLDER) -> list[str]:
    """Return the exec command that ends the user's commands: TERM to all processes, KILL after `grace` seconds.

    The exec command returns after the KILL. If the user's commands end earlier, the exec command is killed with the
    container.
    """
    return ["/bin/sh", "-c", INTERRUPT, "sealci", f"{grace:.3f}", str(math.ceil(grace)), f"{folder}/{GO}"]


def pre_stop(folder: str = ORDER_FOLDER) -> list[str]:
    """Return the `preStop` hook, which sends TERM to the commands when the pod is deleted, and returns at once."""
    return ["/bin/sh", "-c", PRE_STOP, "sealci", f"{folder}/{GO}"]
