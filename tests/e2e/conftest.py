"""The time limit and the shared fixtures of the e2e tests."""

from __future__ import annotations

import pytest

from tests.e2e.fixtures import lab, lab_settings, namespace, own_lab

__all__ = ["lab", "lab_settings", "namespace", "own_lab"]

# Seconds until an e2e test without a limit of its own fails. Image pulls and pod starts take long.
LIMIT = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/e2e/" in item.path.as_posix() and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT))
