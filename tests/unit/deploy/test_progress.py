"""Test `Lanes`, which runs jobs in parallel sequences, and the estimate of the remaining time.

No test depends on real durations: jobs wait for each other, and never for a fixed time.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from deploy.dev.cluster import console, progress
from deploy.dev.cluster.console import CommandFailed
from deploy.dev.cluster.progress import Job, Lanes


def nothing() -> None:
    """The work of a job that ends at once."""


def fail() -> None:
    raise CommandFailed("no such module")


def test_jobs_of_two_lanes_run_at_the_same_time(tmp_path: Path) -> None:
    meeting = threading.Barrier(2, timeout=20)
    Lanes([[Job("a", meeting.wait, 1)], [Job("b", meeting.wait, 1)]], tmp_path / "durations.json").run()


def test_a_job_waits_for_the_jobs_that_it_needs(tmp_path: Path) -> None:
    ended: list[str] = []
    lanes = [
        [Job("runc", lambda: ended.append("runc"), 1, needs=("packages",))],
        [Job("first", lambda: ended.append("first"), 1), Job("packages", lambda: ended.append("packages"), 1)],
    ]
    Lanes(lanes, tmp_path / "durations.json").run()
    assert ended == ["first", "packages", "runc"]


def test_after_a_failure_no_further_job_begins(tmp_path: Path) -> None:
    begun: list[str] = []
    waits_for_ever = Job("runc", lambda: begun.append("runc"), 1, needs=("later",))
    lanes = [[waits_for_ever], [Job("broken", fail, 1), Job("later", lambda: begun.append("later"), 1)]]
    with pytest.raises(CommandFailed, match="no such module"):
        Lanes(lanes, tmp_path / "durations.json").run()
    assert begun == []
    assert not console.hush.is_set()


def test_the_longer_lane_decides_the_time_that_is_left(tmp_path: Path) -> None:
    lanes = Lanes(
        [[Job("a", nothing, 200), Job("b", nothing, 100)], [Job("c", nothing, 50)]], tmp_path / "durations.json"
    )
    assert lanes.seconds_left(0.0) == 300
    lanes.began = {"a": 1000.0, "c": 1000.0}
    assert lanes.seconds_left(1060.0) == 240
    assert lanes.line(1060.0) == "[0 of 3] a, c · about 4 min left"
    # Job `a` takes longer than estimated. Its remaining time counts as 0, and not as a negative number.
    assert lanes.seconds_left(1900.0) == 100
    lanes.took = {"a": 901.0, "c": 20.0}
    assert lanes.line(1901.0) == "[2 of 3]  · about 2 min left"


def test_the_durations_of_an_earlier_run_replace_the_estimates(tmp_path: Path) -> None:
    record = tmp_path / "durations.json"
    record.write_text(json.dumps({"a": 30.0}))
    assert Lanes([[Job("a", nothing, 200), Job("b", nothing, 5)]], record).seconds_left(0.0) == 35
    record.write_text("{")
    assert Lanes([[Job("a", nothing, 200)]], record).seconds_left(0.0) == 200


def test_only_jobs_that_did_work_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "durations.json"
    record.write_text(json.dumps({"a": 30.0}))
    Lanes([[Job("a", nothing, 200)]], record).run()
    assert json.loads(record.read_text()) == {"a": 30.0}
    monkeypatch.setattr(progress, "WORTH_RECORDING", -1.0)
    Lanes([[Job("a", nothing, 200)]], record).run()
    assert json.loads(record.read_text())["a"] < 30.0


@pytest.mark.parametrize(
    ("seconds", "words"), [(600, "10 min"), (91, "2 min"), (89, "90 s"), (12, "10 s"), (0, "10 s")]
)
def test_the_time_left_is_rounded(seconds: float, words: str) -> None:
    assert progress.time_left(seconds) == f"about {words} left"


def test_steps_print_nothing_while_the_line_is_redrawn(capfd: pytest.CaptureFixture[str]) -> None:
    console.hush.set()
    try:
        with console.step("quiet"):
            pass
    finally:
        console.hush.clear()
    with console.step("loud"):
        pass
    assert "quiet" not in capfd.readouterr().err
