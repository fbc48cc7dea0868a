"""Entry point of `python -m agent` and of the command `sealci-agent`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
# The commands that a person watches. SIGTERM and SIGHUP (a closed terminal) end these commands as Ctrl-C does.
WATCHED = frozenset({"run", "submit"})


def main() -> None:
    """Run the command line and exit.

    The imports take half a second. An interruption during the imports has the same exit code as during a command.
    """
    # gRPC writes its own lines to standard error, for example for each failed TLS handshake. The agent logs the cause.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    watched = not WATCHED.isdisjoint(sys.argv[1:2])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if watched else (signal.SIGINT,):
        # Under nohup, SIGHUP stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, exit_at_once)
    from agent.cli.main import main as run_command_line

    if not watched:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command_line()


def exit_at_once(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - the parameters of a signal handler
    """Exit without clean-up. Nothing was started yet.

    A KeyboardInterrupt would not reliably end the process: libraries in C and Rust turn it into errors of their own
    while they are loaded.
    """
    with contextlib.suppress(OSError):
        os.write(2, b"sealci-agent: interrupted\n")
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
