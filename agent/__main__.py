"""Entry point of `python -m agent` and of the command `sealci-agent`."""

from __future__ import annotations

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line and exit. Ctrl-C during the imports, which take half a second, ends as Ctrl-C later."""
    try:
        from agent.cli.main import main as run_command_line

        run_command_line()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
