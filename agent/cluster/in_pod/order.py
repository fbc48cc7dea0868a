"""Write an action's order as shell scripts into the memory-backed volume that PID 1 of container `action` reads.

The order is JSON: what the commands' shell needs to run one action. The agent puts the order into the environment of
container `helper` in pieces, because Linux limits one variable to 128 KiB. The commands are never arguments of a
process, so `pkill -f` finds only what the commands start. `packaging` sends this source to the pod (Python 3.9).

The keys of an order: `nonce`, `commands`, `env`, `secrets` (names), `workspace`, `pipefail`, `shell_options`, `shell`,
`termination` (a path), `snapshot`, `change_owner` and `start` (booleans), `gate` (see `start_gate`, or null), and the
numbers `log_limit`, `log_key`, `drain` and `seconds`.
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    Order = dict[str, Any]

PIECE = "SEALCI_ORDER_"  # prefix of the variables that hold the pieces of the JSON, numbered from 0
SECRET = "SEALCI_SECRET_"  # a variable holds the value of one secret  # noqa: S105 - a prefix of names
# Names of the files and FIFOs of the order's folder. `go` is created last.
SUPERVISOR, SETTINGS, VARIABLES, SETUP, LOG, CONTROL, GO = "supervisor", "order", "env", "setup", "log", "control", "go"
IDLE_SECONDS = "SEALCI_IDLE_SECONDS"  # variable of container `helper` in a warm pod: seconds to wait for an order
LEAVE = b"leave\n"  # the word in `go` that ends PID 1 of container `action` in a warm pod without an order
# Names of the files of the log's folder. `end` is JSON, and appears when the log has ended.
LOG_FILE, LOG_END = "log", "end"
# Names in the log's folder of a warm pod: the socket that takes the order, and a file that appears before the commands.
SOCKET, BEGUN = "order-socket", "begun"
SET_PIPE_SIZE = 1031  # F_SETPIPE_SZ of Linux, which module `fcntl` names only from Python 3.10 on
PIPE_BYTES = 256 * 1024  # with the kernel's 64 KiB, the writer and the reader of a pipe wait for each other more often


def read_order(environment: Mapping[str, str]) -> Order:
    """Read the order from this container's environment variables.

    The field `env` of the result also holds the secrets.
    """
    import json  # costs some milliseconds, while PID 1 of container `action` already waits for the FIFO `go`

    pieces: list[str] = []
    while (name := PIECE + str(len(pieces))) in environment:
        pieces.append(environment[name])
    order: Order = json.loads("".join(pieces))
    for name in order["secrets"]:
        value = environment[SECRET + name]
        if name == "SHELLOPTS":
            order["shell_options"] = value
        else:
            order["env"][name] = value
    return order


def enlarge_pipe(fd: int) -> None:
    """Let the pipe FD buffer `PIPE_BYTES`. Nothing changes if FD is no pipe, or if the kernel refuses the size."""
    try:  # noqa: SIM105 - an import of `contextlib` costs milliseconds at the start of each pod
        fcntl.fcntl(fd, SET_PIPE_SIZE, PIPE_BYTES)
    except OSError:
        pass


def quote(text: str) -> str:
    """Return TEXT as one word of a POSIX shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def assign(**values: str) -> str:
    """Return a shell line that sets variables of the supervisor, whose names begin with `__sealci_`."""
    return " ".join(["__sealci_" + name + "=" + quote(value) for name, value in values.items()]) + "\n"


def unrolled_list(count: int) -> str:
    """Return the script by which the commands shell runs all COUNT commands, without a loop.

    The script is one line, so that line numbers in messages count the lines of the user's commands.
    """
    turns = [
        f'\\eval "$__sealci_flags$__sealci_{number}"; {{ __sealci {number + 1} "$?"; }} >/dev/null 2>&1 || \\exit; '
        for number in range(1, count + 1)
    ]
    begin = "{ __sealci 1 0; } >/dev/null 2>&1 || \\exit; "
    return "{ " + begin + "".join(turns) + '\\eval "$__sealci_flags"; }'


def settings_script(order: Order) -> str:
    """Return the script that sets the variables of PID 1."""
    values = {
        "shell": order["shell"],
        "nonce": order["nonce"],
        "workspace": order["workspace"],
        "file": order["termination"],
        "pipefail": order["pipefail"],
        "list": unrolled_list(len(order["commands"])),
    }
    if order["shell_options"] is not None:
        values["options"] = order["shell_options"]
    return assign(**values)


def variables_script(order: Order) -> str:
    """Return the script that exports the action's variables. PID 1 itself never has them."""
    return "".join([f"export {name}={quote(value)}\n" for name, value in order["env"].items()])


def setup_script(order: Order, folder: str, setup: str) -> str:
    """Return the script that the commands shell sources: the commands as variables, then SETUP."""
    lines = [
        assign(
            nonce=order["nonce"],
            file=order["termination"],
            log=folder + "/" + LOG,
            control=folder + "/" + CONTROL,
            flags="",
            count=str(len(order["commands"])),
        )
    ]
    for number, command in enumerate(order["commands"], 1):
        # `eval` would take a leading dash for an option.
        lines.append(assign(**{str(number): " " + command if command.startswith("-") else command}))
    return "".join(lines) + setup


def write_order(order: Order, folder: str, setup: str) -> None:
    """Write the files of the order, SETUP last.

    PID 1 reads these files after it has read the word `run` from the FIFO `go`.
    """
    write(folder, SETTINGS, settings_script(order))
    write(folder, VARIABLES, variables_script(order))
    write(folder, SETUP, setup_script(order, folder, setup))


def remove_order(folder: str) -> None:
    """Remove the files that hold the commands and the secrets. The commands shell has read them."""
    for name in (VARIABLES, SETUP):
        if os.path.exists(folder + "/" + name):
            os.unlink(folder + "/" + name)


def write(folder: str, name: str, text: str) -> None:
    """Write a file that every user of container `action` can read. The file gets its name when it is complete."""
    with open(folder + "/." + name, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
    os.rename(folder + "/." + name, folder + "/" + name)
