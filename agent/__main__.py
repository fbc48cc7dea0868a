"""Entry point of `python -m agent` and of the command `sealci-agent`."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit.

    The imports take half a second. Ctrl-C during the imports gives the same exit code as Ctrl-C during a command.
    """
    try:
        from agent.cli.main import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
