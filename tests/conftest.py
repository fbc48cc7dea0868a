"""What holds for every test: whoever starts a task ends it."""

from __future__ import annotations

import asyncio
import inspect
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ENDING = 2.0

# A loaded machine is slow, not wrong; a failure prints the blob that reproduces it.
settings.register_profile("sealci", deadline=None, print_blob=True)
settings.load_profile("sealci")


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
    """Say how many tests ran of each kind."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            kind = report.nodeid.split("/")[1] if report.nodeid.count("/") > 1 else "other"
            counts.setdefault(kind, Counter())[outcome] += 1
    for kind, outcomes in counts.items():
        said = ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items())
        terminalreporter.write_line(f"{kind}: {said}")
