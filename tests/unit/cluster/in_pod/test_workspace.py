"""PID 1 of container `helper`: it walks over the workspace, stores a snapshot, and waits for SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from agent.cluster.in_pod import packaging, workspace
from tests.unit.cluster.in_pod.places import Place, as_run_here


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
    here = os.open(place.root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    root = os.open(place.root, os.O_RDONLY)
    missed: dict[str, str] = {}
    assert not list(workspace.walk(root, lambda *_: True, missed.__setitem__))
    os.close(root)
    assert {len(path): why for path, why in missed.items()} == {4097: "a path longer than 4096 bytes"}
    subprocess.run(["rm", "-rf", place.root], check=True)


def start_program(place: Place, seconds: float) -> tuple[subprocess.Popen[bytes], Path]:
    ready = place.root.parent / "ready"
    # A named pipe opens only when both ends are open. So a test that reads it waits for the program without polling.
    os.mkfifo(ready)
    command = packaging.workspace_command(workspace=str(place.root), ready_path=str(ready), seconds=seconds)
    return subprocess.Popen(as_run_here(command, place.snapshot), stderr=subprocess.PIPE), ready


def test_the_program_takes_a_snapshot_and_exits_on_term(place: Place) -> None:
    place.write("old")
    place.write(b"odd \n\xff name")
    with start_program(place, 60)[0] as process:
        (place.root.parent / "ready").read_bytes()
        place.write("new")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert set(place.collect().contents) == {b"new"}


def test_the_program_exits_after_its_time(place: Place) -> None:
    process, ready = start_program(place, 0)
    with process:
        ready.read_bytes()
        assert process.wait(10) == 0


def test_the_snapshot_waits_until_the_clock_has_passed_the_newest_file(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = os.stat(place.write("file")).st_ctime_ns
    readings = iter([changed - 1, changed, changed + 1, changed + 2])
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: next(readings))
    place.take_snapshot()
    assert list(readings) == [changed + 2]
