"""What holds for every test: whoever starts a task ends it; signals have their default; tables come to the end."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

# Seconds until a task that a test has cancelled must have ended.
ENDING = 2.0
TESTS = Path(__file__).parent
ON_A_CLUSTER = (TESTS / "e2e", TESTS / "faults" / "cluster")

# A loaded machine is slow, not wrong; a failure prints the blob that reproduces it.
settings.register_profile("sealci", deadline=None, print_blob=True)
settings.load_profile("sealci")


def pytest_configure(config: pytest.Config) -> None:
    """Give signals their default in what tests start: `&` has SIGINT and SIGQUIT ignored, `nohup` SIGHUP."""
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)
    # Without this call, the first synchronous test makes an event loop that is never closed: looptime's and
    # pytest-asyncio's hooks call `get_event_loop`, which creates a loop in a thread that never had one. The garbage
    # collector then fails whichever later test it runs in. After this call, `get_event_loop` raises, as both expect.
    asyncio.set_event_loop(None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the folders that need a cluster."""
    for item in items:
        if any(folder in item.path.parents for folder in ON_A_CLUSTER):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def in_table(request: pytest.FixtureRequest) -> Callable[[str, str, Mapping[str, str]], None]:
    """Add a row to a table that is printed at the end: its title, the row's name, text by column."""

    def add(title: str, row: str, cells: Mapping[str, str]) -> None:
        request.node.user_properties.append(("table", (title, row, dict(cells))))

    return add


@pytest.fixture(autouse=True)
def no_task_is_left(request: pytest.FixtureRequest) -> None:
    """Fail an asynchronous test that leaves tasks behind."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("tasks_that_end")


@pytest.fixture
async def tasks_that_end() -> AsyncIterator[None]:
    """Compare the tasks after a test with those before; what is already ending is waited for."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=ENDING)
    assert not left, f"tasks that the test has left behind: {left}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables, then how many tests ran of each kind."""
    counts: dict[str, Counter[str]] = {}
    tables: dict[str, dict[str, dict[str, str]]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            kind = report.nodeid.split("/")[1] if report.nodeid.count("/") > 1 else "other"
            counts.setdefault(kind, Counter())[outcome] += 1
            for name, value in getattr(report, "user_properties", ()):
                if name == "table":
                    tables.setdefault(value[0], {}).setdefault(value[1], {}).update(value[2])
    for title, rows in tables.items():
        print_table(terminalreporter, title, rows)
    for kind, outcomes in counts.items():
        said = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
        terminalreporter.write_line(f"{kind}: {said}")


def print_table(reporter: pytest.TerminalReporter, title: str, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Print a line per row, as wide as its columns need, each cell at most 60 characters."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [[title, *columns], *([row, *(cells.get(name, "") for name in columns)] for row, cells in rows.items())]
    widths = [max(len(line[index][:60]) for line in lines) + 2 for index in range(len(columns) + 1)]
    reporter.write_line("")
    for line in lines:
        reporter.write_line("".join(f"{cell[:60]:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
