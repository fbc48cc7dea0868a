"""The crash matrix at the end of a run that holds it; what takes long runs only when it is asked for (`-m soak`)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", "soak: takes minutes, and runs only with -m soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is only for a soak."""
    if "soak" not in config.getoption("markexpr"):
        items[:] = [item for item in items if item.get_closest_marker("soak") is None]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tables of what ran."""
    crash_matrix(terminalreporter)
    copies(terminalreporter)


def crash_matrix(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line per step, a column per who came after."""
    module = sys.modules.get("tests.faults.test_crash_matrix")
    if module is None or not module.TABLE:
        return
    columns = module.COLUMNS
    terminalreporter.write_line("")
    terminalreporter.write_line(f"{'killed at':26}" + "".join(f"{column:22}" for column in columns))
    for step, cells in module.TABLE.items():
        terminalreporter.write_line(f"{step:26}" + "".join(f"{cells[column][:60]:22}" for column in columns))


def copies(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line per tenth, a column per side on which the copy was cut."""
    module = sys.modules.get("tests.faults.test_copy_is_cut")
    if module is None or not any(module.TABLE.values()):
        return
    terminalreporter.write_line("")
    terminalreporter.write_line(f"{'100 MiB cut at':16}" + "".join(f"{side:28}" for side in module.SIDES))
    for tenth in module.TENTHS:
        cells = "".join(f"{module.TABLE[side].get(tenth, '')[:60]:28}" for side in module.SIDES)
        terminalreporter.write_line(f"{tenth * 10:3} %{'':11}{cells}")
