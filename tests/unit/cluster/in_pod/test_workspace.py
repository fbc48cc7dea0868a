"""The walk over the files of the workspace, and the snapshot file that records them."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from agent.cluster.in_pod import workspace
from tests.unit.cluster.in_pod.places import Place


def test_another_file_system_is_not_entered() -> None:
    root = os.open("/", os.O_RDONLY)
    missed: dict[str, str] = {}
    entered: list[str] = []

    def enter(path: str, _: str) -> bool:
        entered.append(path)
        return False

    assert "proc" not in {path for path, *_ in workspace.walk(root, enter, missed.__setitem__)}
    os.close(root)
    assert missed["proc"] == "another file system"
    assert "proc" not in entered
    assert "usr" in entered


def test_folders_with_long_paths_are_not_entered(place: Place) -> None:
    here, name = os.open(place.root, os.O_RDONLY), "d" * 99
    for _ in range(60):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    root = os.open(place.root, os.O_RDONLY)
    missed: dict[str, str] = {}
    assert not list(workspace.walk(root, lambda *_: True, missed.__setitem__))
    os.close(root)
    assert {len(path): why for path, why in missed.items()} == {4099: "a path longer than 4096 bytes"}
    subprocess.run(["rm", "-rf", place.root], check=True)


def test_the_snapshot_waits_until_the_clock_has_passed_the_newest_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = os.stat(place.write("file")).st_ctime_ns
    readings = iter([changed - 1, changed, changed + 1, changed + 2])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(readings))
    place.take_snapshot()
    assert list(readings) == [changed + 2]


def test_the_wait_for_the_order_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "ORDER_SECONDS", 0)
    with pytest.raises(TimeoutError, match="has not made"):
        workspace.start_commands(str(tmp_path), "", str(tmp_path / "go"))
