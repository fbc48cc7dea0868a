"""Give each test a workspace of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.cluster.in_pod.places import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path / "workspace", tmp_path / "snapshot")
    made.root.mkdir()
    made.take_snapshot()
    return made
