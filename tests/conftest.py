"""Rules for every test.

No test leaves an asyncio task running, signals have their default handlers, and tables are printed last.

This module also marks the tests that need a cluster (`e2e`), by their folder.
"""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

# Seconds until a task that a test has cancelled must have ended.
ENDING = 10.0
TESTS = Path(__file__).parent
ON_A_CLUSTER = (TESTS / "e2e", TESTS / "faults" / "cluster")

# Hypothesis sets no deadline per example, because a loaded machine is slow and not wrong. A failure prints the blob
# that reproduces the example.
settings.register_profile("sealci", deadline=None, print_blob=True)
settings.load_profile("sealci")
# Seed of Hypothesis, so that each run tries the same examples. `--hypothesis-seed=random` tries other examples.
SEED = "20"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the seed of Hypothesis, and restore the default handlers of signals, which processes of tests inherit.

    A shell starts a background job (`&`) with SIGINT and SIGQUIT ignored. `nohup` starts a program with SIGHUP ignored.
    """
    # The plugin of Hypothesis reads the option in its own `pytest_configure`, which runs later.
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = SEED
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)
    # Without this call, hooks of looptime and pytest-asyncio create an event loop before the first synchronous test.
    # No code closes that loop. The garbage collector then fails a later test. After this call, `get_event_loop` raises,
    # as both plugins expect.
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def default_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo the configuration of structlog by a test that runs a command of the agent in the test's process.

    Loggers must not cache their configuration. Otherwise later tests would lack log lines, for example because of the
    level `error`.
    """
    configure = structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **options: configure(**options | {"cache_logger_on_first_use": False})
    )
    yield
    structlog.reset_defaults()


def pytest_report_header(config: pytest.Config) -> str:
    """Print the seed of Hypothesis."""
    return f"hypothesis seed: {config.option.hypothesis_seed}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of the folders that need a cluster."""
    for item in items:
        if any(folder in item.path.parents for folder in ON_A_CLUSTER):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def in_table(request: pytest.FixtureRequest) -> Callable[[str, str, Mapping[str, str]], None]:
    """Return a function that adds cells to a table. pytest prints all tables after the tests.

    The function takes the title of the table, the name of the row, and the texts of the cells by column.
    """

    def add(title: str, row: str, cells: Mapping[str, str]) -> None:
        request.node.user_properties.append(("table", (title, row, dict(cells))))

    return add


@pytest.fixture(autouse=True)
def no_task_is_left(request: pytest.FixtureRequest) -> None:
    """Fail an asynchronous test that leaves asyncio tasks running."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("tasks_that_end")


@pytest.fixture
async def tasks_that_end() -> AsyncIterator[None]:
    """Fail if an asyncio task of the test still runs ENDING seconds after the test."""
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
        text = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
        terminalreporter.write_line(f"{kind}: {text}")


def print_table(reporter: pytest.TerminalReporter, title: str, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Print one line per row. A cell has at most 60 characters."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [[title, *columns], *([row, *(cells.get(name, "") for name in columns)] for row, cells in rows.items())]
    widths = [max(len(line[index][:60]) for line in lines) + 2 for index in range(len(columns) + 1)]
    reporter.write_line("")
    for line in lines:
        reporter.write_line("".join(f"{cell[:60]:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
