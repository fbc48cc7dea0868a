"""An agent dies or stops while its action runs.

Another agent adopts the session and reports the log, files and outcome.
"""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING

from tests.e2e.lab import BUSYBOX, until

if TYPE_CHECKING:
    from tests.e2e.lab import Agent, Lab
    from tests.e2e.submission import Submission

QUICK = {"cluster": {"lease_duration": "4s", "lease_renew": "1s"}}
LINES = 40
COUNT = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep 0.25; done; echo made > file"
WHOLE = "".join(f"line {i}\n" for i in range(1, LINES + 1))


def counting(lab: Lab) -> tuple[Agent, Submission]:
    """Start an agent and an action that writes numbered lines. Wait until the action has written line 5."""
    first = lab.agent(**QUICK)
    submission = lab.start({"count": {"image": BUSYBOX, "commands": ["echo start", COUNT, "echo end"]}})
    submission.until_running("count", "line 5\n")
    return first, submission


def check_whole(submission: Submission) -> None:
    report = submission.wait()["count"]
    assert report.outcome == ("succeeded", None, 0), report
    assert report.text == f"start\n{WHOLE}end\n"
    assert report.files["file"].read_text() == "made\n"
    assert report.commands == [(1, 0), (2, 0), (3, 0)]


def test_another_agent_adopts_the_session_of_a_killed_agent(own_lab: Lab) -> None:
    first, submission = counting(own_lab)
    second = own_lab.agent(**QUICK)
    first.kill()
    check_whole(submission)
    assert "adopted a session" in second.log


def test_a_restarted_agent_adopts_its_own_sessions(own_lab: Lab) -> None:
    own_lab.settings = {"agent": {"id": "pod-of-the-agent"}}
    first, submission = counting(own_lab)
    first.kill()
    second = own_lab.agent(**QUICK)
    check_whole(submission)
    assert "adopted a session" in second.log


def test_a_stopping_agent_hands_its_sessions_over(own_lab: Lab) -> None:
    own_lab.settings = {"agent": {"drain_timeout": "1s"}}
    first, submission = counting(own_lab)
    own_lab.agent(**QUICK)
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(30) == 0
    last = first.log.splitlines()[-1]
    assert '"event": "left"' in last
    assert '"handed_over": 1' in last
    check_whole(submission)


def test_a_thawed_agent_changes_nothing_of_an_adopted_session(own_lab: Lab) -> None:
    first, submission = counting(own_lab)
    second = own_lab.agent(**QUICK)
    first.process.send_signal(signal.SIGSTOP)
    until(lambda: "adopted a session" in second.log, "the second agent did not adopt", 30)
    first.process.send_signal(signal.SIGCONT)
    check_whole(submission)
    until(lambda: "session ended" in second.log, "the second agent did not end the session", 30)
    assert '"outcome": "succeeded"' not in first.log
    until(lambda: "another agent has adopted" in first.log, "the first agent did not notice the adoption")
    deleted = re.findall(r'requests_total\{code="\w+",resource="pods",verb="delete"\} (\S+)', first.get("/metrics")[1])
    assert set(deleted) == {"0.0"}, "it has deleted what is another's"
