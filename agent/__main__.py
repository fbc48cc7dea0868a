"""Entry point of `python -m agent` and of the command `sealci-agent`."""

from __future__ import annotations

import contextlib
import signal
import sys

INTERRUPTED = 130
# The commands that a person watches. SIGTERM and SIGHUP (a closed terminal) end these commands as Ctrl-C does.
WATCHED = ("run", "submit")


def main() -> None:
    """Run the command line and exit.

    The imports take half a second. An interruption during the imports has the same exit code as during a command.
    """
    if sys.argv[1:2] and sys.argv[1] in WATCHED:
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Under nohup, SIGHUP stays ignored.
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, signal.default_int_handler)
    try:
        from agent.cli.main import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            sys.stderr.write("sealci-agent: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
