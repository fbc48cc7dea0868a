"""Test which libraries a serving agent loads. An unused library would cost memory and time at each start."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = "import sys, agent.cli.main, agent.app.serve; print(*{name.partition('.')[0] for name in sys.modules})"
UNUSED = {"requests", "oauthlib", "urllib3", "websocket", "rich", "pygments", "opentelemetry", "sqlite3", "pathspec"}


def test_an_agent_loads_no_unused_module() -> None:
    command = [sys.executable, "-c", PROGRAM]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True).stdout.split()
    assert "kubernetes" in loaded
    assert set(loaded) & UNUSED == set()
