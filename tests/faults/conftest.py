"""What takes long runs only when it is asked for (`-m soak`)."""

from __future__ import annotations

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
