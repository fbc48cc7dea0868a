"""What e2e tests share: a namespace and a lab per module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.lab import Lab, new_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests on a real cluster the time that they need."""
    for item in items:
        if "/e2e/" in item.path.as_posix() and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace of the module's own."""
    with new_namespace() as name:
        yield name


@pytest.fixture(scope="module")
def lab(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab with one agent of 20 slots."""
    lab = Lab(namespace, tmp_path_factory.mktemp("lab"))
    try:
        lab.agent()
        yield lab
    finally:
        lab.close()


@pytest.fixture
def own_lab(namespace: str, tmp_path: Path) -> Iterator[Lab]:
    """A lab for a test that breaks it or needs other settings; it starts its agents itself."""
    lab = Lab(namespace, tmp_path)
    try:
        yield lab
    finally:
        lab.close()
