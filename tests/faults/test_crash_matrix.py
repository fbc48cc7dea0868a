"""The agent is killed with SIGKILL after each step of an action. No line, file or outcome is lost or doubled.

The table of all cases is printed after the tests.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.faults.agent_processes import AgentProcesses
from tests.faults.crash_case import CrashCase
from tests.faults.node import FINAL_PHASE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

STEPS = (
    "received",
    "accepted",
    "pod created",
    "Secret created",
    "scheduled",
    "pulling",
    "cloning",
    "running",
    "mid-line",
    "command 1 ended",
    "container ended",
    "log drained",
    "files half sent",
    "outcome sent",
    "outcome not acknowledged",
    "delete sent",
    FINAL_PHASE,
    "deleted",
)
# Steps of an action that begins in a warm pod, until the commands certainly run.
WARM_STEPS = ("pod claimed", "order stored", "go arrived", "begun", "first marker")
COLUMNS = ("same", "other", "later")
# Seconds until a case of the crash matrix fails.
DEADLINE = 50.0


@pytest.fixture
async def processes() -> AsyncIterator[AgentProcesses]:
    async with AgentProcesses() as processes:
        yield processes


@pytest.mark.parametrize("step", STEPS)
async def test_no_action_is_lost_when_its_agent_is_killed(
    step: str, tmp_path: Path, processes: AgentProcesses, in_table: Callable[[str, str, Mapping[str, str]], None]
) -> None:
    await run_columns(step, tmp_path, processes, partial(in_table, "killed at", step))


@pytest.mark.parametrize("step", WARM_STEPS)
async def test_no_action_runs_twice_when_its_agent_is_killed_while_it_begins_in_a_warm_pod(
    step: str, tmp_path: Path, processes: AgentProcesses, in_table: Callable[[str, str, Mapping[str, str]], None]
) -> None:
    await run_columns(step, tmp_path, processes, partial(in_table, "killed at", f"warm: {step}"), warm=True)


async def run_columns(
    step: str,
    tmp_path: Path,
    processes: AgentProcesses,
    write_row: Callable[[Mapping[str, str]], None],
    *,
    warm: bool = False,
) -> None:
    """Run the cases of all columns side by side, and write a row of the table."""

    async def one(column: str) -> int:
        folder = tmp_path / column
        folder.mkdir()
        async with asyncio.timeout(DEADLINE):
            return await CrashCase(folder, processes, step, column, warm=warm).run()

    ended = await asyncio.gather(*(one(column) for column in COLUMNS), return_exceptions=True)
    cells = {
        column: f"FAILED: {result!r}" if isinstance(result, BaseException) else f"passed, attempt {result}"
        for column, result in zip(COLUMNS, ended, strict=True)
    }
    write_row(cells)
    for each in ended:
        if isinstance(each, BaseException):
            raise each
