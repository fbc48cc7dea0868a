"""Fixtures of tests on a cluster: a namespace per module, and in it a lab (lab.py) with a scheduler and agents.

The conftest.py of each folder that needs a cluster imports these fixtures. A module overrides `lab_settings` to change
the settings of its agents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import Lab, new_namespace, open_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["lab", "lab_settings", "namespace", "own_lab"]


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    with new_namespace() as name:
        yield name


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    """Return the settings that every agent of the module's labs uses, by section. A module overrides this fixture."""
    return {}


@pytest.fixture(scope="module")
def lab(namespace: str, lab_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab with one agent of 20 slots. All tests of the module share it."""
    with open_lab(namespace, tmp_path_factory.mktemp("lab"), **lab_settings) as lab:
        lab.agent()
        yield lab


@pytest.fixture
def own_lab(namespace: str, lab_settings: dict[str, Any], tmp_path: Path) -> Iterator[Lab]:
    """Yield a lab without agents to one test, which may break the lab or start agents of its own."""
    with open_lab(namespace, tmp_path, **lab_settings) as lab:
        yield lab
