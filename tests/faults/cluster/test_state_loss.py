"""The scheduler loses its state while an action runs on a real cluster: the agent sends all events again."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, Lab, start_scheduler

if TYPE_CHECKING:
    pass

LINES = 40
COUNT = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep 0.25; done; echo made > file"
WHOLE = "".join(f"line {i}\n" for i in range(1, LINES + 1))


@pytest.fixture(scope="module")
def lab_settings() -> dict[str, Any]:
    return {"scheduler": {"reconnect_max": "0.5s"}}


@pytest.mark.timeout(180)
def test_a_scheduler_after_state_loss_receives_all_events_again(own_lab: Lab) -> None:
    agent = own_lab.agent()
    submission = own_lab.start({"count": {"image": BUSYBOX, "commands": ["echo start", COUNT, "echo end"]}})
    # `sealci-agent submit` fails, because the scheduler loses the pipeline. If `cancelled` is true, `Submission.wait`
    # accepts an error message of `sealci-agent submit`.
    submission.cancelled = True
    submission.until_running("count", "line 5\n")
    own_lab.scheduler.kill()
    own_lab.scheduler.wait(10)
    shutil.rmtree(own_lab.folder / "scheduler")
    own_lab.scheduler, _ = start_scheduler(own_lab.folder, own_lab.address)
    report = submission.wait()["count"]
    assert "lost its state" in submission.errors
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text == f"start\n{WHOLE}end\n"
    assert report.files["file"].read_text() == "made\n"
    pods = {pod["metadata"]["uid"] for pod in own_lab.observer.states if pod["metadata"]["labels"]}
    assert len(pods) == 1, "the commands ran twice"
    assert "the scheduler lost acknowledged events" in agent.log
