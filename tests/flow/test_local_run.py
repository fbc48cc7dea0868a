"""`sealci-agent run` from a pipeline to its exit code, with a fake engine."""

from __future__ import annotations

import asyncio
import io
import json
import os
from typing import TYPE_CHECKING

import pytest

from agent.cli.run_pipeline import RunOptions, Timeouts, run_pipeline
from agent.console.follower import Interruptions
from agent.console.reports.run_report import ExitCode
from agent.domain.errors import AgentError, Reason, Stage
from agent.domain.events import ArtifactSummary, Finished
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Readiness
from agent.pipeline import parser
from agent.protocol import translate
from tests.fakes.agent import CANCELLED, FAILURE, SUCCESS, FakeAgent, file_parts, life

if TYPE_CHECKING:
    from pathlib import Path

    from agent.cli.run_pipeline import Endpoint, Engine
    from agent.protocol.wire import agent_pb2 as wire

ONE = parser.parse("name: p\nactions:\n  a: {configuration: {container: i}, commands: [x]}\n", "p.yaml")
EVICTED = Outcome(Result.FAILED, Stage.COMMANDS, Reason.EVICTED, message="the node was full")


def ends_with(outcome: Outcome) -> Engine:
    async def answer(agent: FakeAgent, action: wire.Action) -> None:
        await agent.upload(translate.key(action), file_parts((b"out/f", b"x")), summary=ArtifactSummary(1, 1))
        for event in life(b"hello\nworld", outcome):
            await agent.event(translate.key(action), event)

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text(), answer=answer):
            await stop.wait()

    return engine


class Terminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


async def test_the_view_writes_nothing_while_the_engine_holds_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("CI", raising=False)
    output = Terminal()

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text()) as agent:
            key = translate.key(await agent.action())
            events = life(b"hello\n", SUCCESS)
            await agent.event(key, events[0])
            async with endpoint.screen():
                before = output.getvalue()
                for event in events[1:]:
                    await agent.event(key, event)
                assert output.getvalue() == before
            await stop.wait()

    found = await run_pipeline(ONE, engine=engine, secrets={}, stream=output, interruptions=Interruptions())
    assert found is ExitCode.SUCCEEDED
    assert "hello" in output.getvalue()


async def test_reports_are_written(tmp_path: Path) -> None:
    files = (tmp_path / "junit.xml", tmp_path / "new" / "page.md")
    options = RunOptions(output="json", reports=files)
    await run_pipeline(
        ONE, engine=ends_with(FAILURE), secrets={}, options=options, stream=io.StringIO(), interruptions=Interruptions()
    )
    assert '<failure message="command 1 failed" type="COMMAND_FAILED">' in files[0].read_text()
    assert "| a | ❌ failed COMMAND_FAILED (exit code 3) |" in files[1].read_text()


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (SUCCESS, ExitCode.SUCCEEDED),
        (FAILURE, ExitCode.FAILED),
        (EVICTED, ExitCode.INFRASTRUCTURE),
    ],
)
async def test_the_exit_code_follows_the_outcome(tmp_path: Path, outcome: Outcome, code: ExitCode) -> None:
    output = io.StringIO()
    found = await run_pipeline(
        ONE,
        engine=ends_with(outcome),
        secrets={},
        options=RunOptions(artifacts=tmp_path, output="json"),
        stream=output,
        interruptions=Interruptions(),
    )
    assert found is code
    last = json.loads(output.getvalue().splitlines()[-1])
    assert (last["event"], last["outcome"]) == ("finished", outcome.result.value)
    assert (tmp_path / "a.log").read_bytes() == b"hello\nworld"
    assert (tmp_path / "a" / "out" / "f").read_bytes() == b"x"
    assert sorted(os.listdir(tmp_path)) == ["a", "a.log"]


async def test_plain_output_shows_lines_and_a_table(tmp_path: Path) -> None:
    output = io.StringIO()
    await run_pipeline(
        ONE,
        engine=ends_with(FAILURE),
        secrets={},
        options=RunOptions(artifacts=tmp_path, output="plain"),
        stream=output,
        interruptions=Interruptions(),
    )
    lines = output.getvalue().splitlines()
    assert lines[:7] == [
        "· 1 file, 1 B",
        "· setup",
        "$ x",
        "hello",
        "world",
        "· failed COMMAND_FAILED (exit code 3), the user's fault: command 1 failed",
        "",
    ]
    assert lines[7:10] == ["✘ a: command 1 failed", "  │ $ x", lines[9]]
    assert lines[9].startswith("  COMMAND_FAILED (exit code 3), the user's fault, in the commands stage")
    assert lines[10:13] == ["  the last 2 lines of its log:", "  │ hello", "  │ world"]
    table = next(number for number, line in enumerate(lines) if line.startswith("action"))
    assert lines[table].split()[:3] == ["action", "outcome", "reason"]
    assert lines[table + 1].split()[:5] == ["a", "failed", "COMMAND_FAILED", "(exit", "code"]
    assert lines[-2:] == [f"logs and files: {tmp_path}", "  a/out/f  1 B"]


async def test_the_first_interruption_cancels_and_waits(tmp_path: Path) -> None:
    interruptions = Interruptions()
    clean = asyncio.Event()

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text()) as agent:
            key = translate.key(await agent.action())
            interruptions.interrupt()
            await agent.take("cancel")
            await agent.event(key, Finished(CANCELLED))
            await stop.wait()
            clean.set()

    found = await run_pipeline(
        ONE, engine=engine, secrets={}, options=RunOptions(artifacts=tmp_path), interruptions=interruptions
    )
    assert found is ExitCode.INTERRUPTED
    assert clean.is_set()


async def test_the_second_interruption_ends_the_run_at_once(tmp_path: Path) -> None:
    interruptions = Interruptions()

    async def engine(endpoint: Endpoint, _: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text()) as agent:
            await agent.action()
            interruptions.interrupt()
            await agent.take("cancel")
            interruptions.interrupt()
            await asyncio.Event().wait()

    found = await run_pipeline(
        ONE, engine=engine, secrets={}, options=RunOptions(artifacts=tmp_path), interruptions=interruptions
    )
    assert found is ExitCode.INTERRUPTED


async def test_a_failed_engine_is_the_infrastructures_fault(capsys: pytest.CaptureFixture[str]) -> None:
    async def engine(_: Endpoint, __: asyncio.Event) -> None:
        raise AgentError("no cluster")

    assert await run_pipeline(ONE, engine=engine, secrets={}, interruptions=Interruptions()) is ExitCode.INFRASTRUCTURE
    assert "no cluster" in capsys.readouterr().err


async def test_the_run_ends_when_the_agent_does_not_get_ready(capsys: pytest.CaptureFixture[str]) -> None:
    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        token = endpoint.token_file.read_text()
        async with FakeAgent(endpoint.address, token=token, ready=False) as agent:
            await agent.health(Readiness.DEGRADED, message="no route to the cluster")
            await stop.wait()

    found = await run_pipeline(
        ONE, engine=engine, secrets={}, timeouts=Timeouts(start=1.5), interruptions=Interruptions()
    )
    assert found is ExitCode.INFRASTRUCTURE
    assert "the agent is not ready: no route to the cluster" in capsys.readouterr().err


async def test_the_time_of_a_run_is_limited(tmp_path: Path) -> None:
    output = io.StringIO()

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text()) as agent:
            key = translate.key(await agent.action())
            cancel = await agent.take("cancel")
            await agent.event(key, Finished(Outcome(Result.CANCELLED, Stage.COMMANDS, message=str(cancel))))
            await stop.wait()

    found = await run_pipeline(
        ONE,
        engine=engine,
        secrets={},
        options=RunOptions(artifacts=tmp_path, output="json"),
        stream=output,
        timeouts=Timeouts(pipeline=0.1),
        interruptions=Interruptions(),
    )
    assert found is ExitCode.FAILED
    assert "the time of 0.1 s is over" in output.getvalue()


class Closed(io.StringIO):
    """A text stream that fails on each write, as a pipe does whose reader has closed it."""

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


async def test_a_closed_output_cancels_the_run_and_the_engine_cleans_up(tmp_path: Path) -> None:
    clean = asyncio.Event()

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text()) as agent:
            key = translate.key(await agent.action())
            for event in life()[:-1]:
                await agent.event(key, event)
            await agent.take("cancel")
            await agent.event(key, Finished(CANCELLED))
            await stop.wait()
            clean.set()

    found = await run_pipeline(
        ONE,
        engine=engine,
        secrets={},
        options=RunOptions(artifacts=tmp_path, output="plain"),
        stream=Closed(),
        interruptions=Interruptions(),
    )
    assert found is ExitCode.INTERRUPTED
    assert clean.is_set()


async def test_a_closed_output_and_a_silent_agent_end_after_the_cancel_timeout(tmp_path: Path) -> None:
    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        async with FakeAgent(endpoint.address, token=endpoint.token_file.read_text()) as agent:
            key = translate.key(await agent.action())
            for event in life()[:-1]:
                await agent.event(key, event)
            await stop.wait()

    async with asyncio.timeout(30):
        found = await run_pipeline(
            ONE,
            engine=engine,
            secrets={},
            options=RunOptions(artifacts=tmp_path, output="plain"),
            stream=Closed(),
            timeouts=Timeouts(cancel=0.1),
            interruptions=Interruptions(),
        )
    assert found is ExitCode.INTERRUPTED


async def test_a_cancellation_before_the_agent_is_ready_outlives_the_start_timeout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    interruptions = Interruptions()
    interruptions.interrupt()

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        token = endpoint.token_file.read_text()
        async with FakeAgent(endpoint.address, token=token, ready=False):
            await stop.wait()

    found = await run_pipeline(
        ONE, engine=engine, secrets={}, timeouts=Timeouts(start=0.0), interruptions=interruptions
    )
    assert found is ExitCode.INTERRUPTED
    assert "not ready" not in capsys.readouterr().err
