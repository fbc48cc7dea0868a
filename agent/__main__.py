"""Entry point of `python -m agent` and of the command `sealci-agent`."""

from __future__ import annotations

from agent.cli.main import main

if __name__ == "__main__":
    main()
