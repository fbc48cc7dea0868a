"""What takes long, or needs a cluster of two nodes, runs only when it is asked for (`-m soak`, `-m nodes`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers."""
    config.addinivalue_line("markers", "soak: takes minutes, and runs only with -m soak")
    config.addinivalue_line("markers", "nodes: needs a cluster of two nodes, and runs only with -m nodes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was not asked for."""
    for marker in ("soak", "nodes"):
        if marker not in config.getoption("markexpr"):
            items[:] = [item for item in items if item.get_closest_marker(marker) is None]
