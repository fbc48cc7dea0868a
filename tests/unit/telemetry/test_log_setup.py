"""The agent's own log: one JSON object per line, with the ids of the session, without local variables in tracebacks."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

# A test runs this program in a separate process. Logging can be configured only once per process, and pytest has
# configured it in the process of the tests.
PROGRAM = """
import asyncio, logging, sys
import structlog
from agent.telemetry import log_setup
from agent.settings import LoggingSettings
log_setup.configure(LoggingSettings(format=sys.argv[1], level=sys.argv[2]))
log = structlog.get_logger("agent.x")
async def deep():
    token = "very-" + "secret"
    log.info("deep", forged='x"}\\n{"event":"y"}')
    raise ValueError("went wrong")
async def main():
    with structlog.contextvars.bound_contextvars(action="run/a", attempt=2):
        task = asyncio.create_task(deep())
        logging.getLogger("grpc").warning("from %s", "a library")
        try:
            await task
        except ValueError:
            log.exception("caught")
    log.debug("never")
    log.warning("outside")
asyncio.run(main())
"""


def run(form: str, level: str = "info") -> str:
    command = [sys.executable, "-c", PROGRAM, form, level]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stderr


@pytest.fixture(scope="module")
def lines() -> dict[str, dict[str, Any]]:
    return {each["event"]: each for each in map(json.loads, run("json").splitlines())}


def test_each_line_is_one_object_with_time_level_and_bound_ids(lines: dict[str, dict[str, Any]]) -> None:
    assert list(lines) == ["from a library", "deep", "caught", "outside"]
    for event in ("from a library", "deep", "caught"):
        assert (lines[event]["action"], lines[event]["attempt"]) == ("run/a", 2)
    assert "action" not in lines["outside"]
    assert [each["level"] for each in lines.values()] == ["warning", "info", "error", "warning"]
    assert {tuple(each)[:3] for each in lines.values()} == {("timestamp", "level", "event")}
    assert [each["timestamp"] for each in lines.values() if not each["timestamp"].endswith("Z")] == []


def test_a_traceback_holds_no_variables(lines: dict[str, dict[str, Any]]) -> None:
    (exception,) = lines["caught"]["exception"]
    assert (exception["exc_type"], exception["exc_value"]) == ("ValueError", "went wrong")
    assert exception["frames"][-1]["name"] == "deep"
    for form in ("json", "console"):
        assert "very-secret" not in run(form)


def test_lines_below_the_level_are_dropped() -> None:
    assert [json.loads(line)["event"] for line in run("json", "warning").splitlines()] == [
        "from a library",
        "caught",
        "outside",
    ]
