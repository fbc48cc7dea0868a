"""If a task inside `sealci-agent run` or `serve` raises an error, the command ends with one message and an exit code.

The command never hangs.
"""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent.app.serve import first_error
from agent.cli.main import main
from agent.cli.run_agent import serve_until_set
from agent.cli.run_pipeline import RunOptions, run_pipeline
from agent.console.follower import Follower, Interruptions
from agent.console.line_view import LineView
from agent.console.reports import report_files
from agent.console.reports.run_report import ExitCode
from agent.local_scheduler.dispatcher import Dispatcher
from agent.local_scheduler.storage.store import Store
from agent.pipeline import parser
from agent.protocol import translate
from tests.fakes.agent import SUCCESS, FakeAgent, life

if TYPE_CHECKING:
    from pathlib import Path

    from agent.cli.run_pipeline import Endpoint
    from agent.protocol.wire import agent_pb2 as wire

ONE = parser.parse("name: p\nactions:\n  a: {configuration: {container: i}, commands: [x]}\n", "p.yaml")


def dies(*_: object, **__: object) -> None:
    raise KeyError("the fault of a test")


async def dies_async(*_: object, **__: object) -> None:
    raise KeyError("the fault of a test")


PLACES = [
    (Store, "write", dies),
    (Dispatcher, "receive", dies_async),
    (LineView, "show", dies),
    (LineView, "tick", dies),
    (LineView, "close", dies),
    (Follower, "show_events", dies_async),
    (report_files, "write", dies),
]


@pytest.mark.parametrize(("owner", "name", "death"), PLACES, ids=[name for _, name, _ in PLACES])
async def test_a_death_inside_a_run_ends_the_run_and_the_agent(
    owner: object,
    name: str,
    death: object,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stopped = asyncio.Event()

    async def answer(agent: FakeAgent, action: wire.Action) -> None:
        await asyncio.sleep(0.3)
        for event in life(b"hello\n", SUCCESS):
            await agent.event(translate.key(action), event)

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text(), answer=answer):
            await stop.wait()
            stopped.set()

    monkeypatch.setattr(owner, name, death)
    options = RunOptions(output="plain", reports=(tmp_path / "r.md",))
    running = run_pipeline(
        ONE, engine=engine, secrets={}, options=options, stream=io.StringIO(), interruptions=Interruptions()
    )
    try:
        async with asyncio.timeout(20):
            code = await running
    except KeyError:
        # A KeyError that `run_pipeline` raises reaches `main`, which prints a message and exits with a code.
        assert stopped.is_set()
        return
    # If the scheduler's Store fails, the scheduler accepts no pipeline. Then `run_pipeline` starts no agent, so no
    # agent was stopped.
    assert stopped.is_set() or owner is Store
    assert code in (ExitCode.FAILED, ExitCode.INFRASTRUCTURE)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("x"), ExceptionGroup("g", [ExceptionGroup("h", [ValueError("inner")])])])
def test_main_prints_one_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("agent.cli.main.cli", fail)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sealci-agent: internal error, please report it: ")
    assert "KeyError: 'x'" in line or "ValueError: inner" in line


def test_the_error_of_nested_groups_is_the_first_one() -> None:
    inner = ValueError("inner")
    assert first_error(ExceptionGroup("g", [ExceptionGroup("h", [inner]), KeyError("later")])) is inner


async def test_an_agent_that_dies_while_it_serves_passes_its_error_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.cli.run_agent.serve", dies_async)
    with pytest.raises(KeyError):
        async with asyncio.timeout(30):
            await serve_until_set(None, asyncio.Event(), None, [])  # type: ignore[arg-type]


def test_output_in_another_encoding_stops_no_command(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("name: né 😀\nactions: {a: {configuration: {container: i}, commands: [x]}}\n")
    command = [sys.executable, "-m", "agent", "run", str(file), "--list"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    found = subprocess.run(command, capture_output=True, check=False, env=environment, text=True, encoding="ascii")
    assert (found.returncode, found.stderr) == (0, "")
