"""A fixture that gives each test a workspace of its own, with a snapshot file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cluster.in_pod.places import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    created = Place(tmp_path / "workspace", tmp_path / "snapshot")
    created.root.mkdir()
    created.take_snapshot()
    return created
