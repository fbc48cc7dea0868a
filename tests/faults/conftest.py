"""Run the soak tests only if the marker expression names them (`-m soak`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "soak" not in config.getoption("markexpr"):
        items[:] = [item for item in items if item.get_closest_marker("soak") is None]
