"""How the local scheduler accepts or drops events of an attempt, and how an event changes the state of its action."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.domain.errors import Reason, Stage
from agent.domain.events import (
    CommandStarted,
    Event,
    Finished,
    LogChunk,
    ServiceChanged,
    ServiceState,
    Source,
    StageChanged,
)
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.local_scheduler.action_state import ActionState, ActionStatus, Admission, admission, advance
from agent.pipeline.events import ActionEnded, EventBody, LogText

RUNNING = ActionState("pipeline1", "a", ActionStatus.RUNNING, agent="pod.1", started=5.0, seq=3, log_bytes=4)
FAILED = Outcome(Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, 3, 1, "sentence")
CURSOR = Cursor(3, 4)


@pytest.mark.parametrize(
    ("status", "seq", "expected"),
    [
        (ActionStatus.RUNNING, 1, Admission.ACK),
        (ActionStatus.RUNNING, 3, Admission.ACK),
        (ActionStatus.RUNNING, 4, Admission.APPLY),
        (ActionStatus.RUNNING, 5, Admission.GAP),
        (ActionStatus.WAITING, 4, Admission.APPLY),
        (ActionStatus.ENDED, 3, Admission.ACK),
        (ActionStatus.ENDED, 4, Admission.DISCARD),
        (ActionStatus.ENDED, 5, Admission.DISCARD),
    ],
)
def test_admission(status: ActionStatus, seq: int, expected: Admission) -> None:
    assert admission(replace(RUNNING, status=status), seq) is expected


@pytest.mark.parametrize(
    ("event", "changes", "body"),
    [
        (StageChanged(Stage.SETUP), {"stage": Stage.SETUP}, StageChanged(Stage.SETUP)),
        (CommandStarted(2, CURSOR), {"command": 2, "cursor": CURSOR.encode()}, CommandStarted(2, CURSOR)),
        (LogChunk(b"ab", CURSOR), {"log_bytes": 6, "cursor": CURSOR.encode()}, LogText(b"ab", Source.COMMANDS, 4)),
        (LogChunk(b"ab", None, Source.AGENT), {"log_bytes": 6}, LogText(b"ab", Source.AGENT, 4)),
        (
            LogChunk(b"ab\ncd\n", None, Source.SERVICE, "db", b"1|x|2"),
            {"log_bytes": 20, "service_cursors": {"db": b"1|x|2"}},
            LogText(b"[db] ab\n[db] cd\n", Source.SERVICE, 4, "db"),
        ),
        (
            ServiceChanged("db", ServiceState.ENDED, 1),
            {},
            ServiceChanged("db", ServiceState.ENDED, 1),
        ),
        (Finished(FAILED), {"status": ActionStatus.ENDED, "outcome": FAILED}, ActionEnded(FAILED, 2.0)),
        (None, {}, None),
    ],
)
def test_an_event_changes_the_state(event: Event | None, changes: dict[str, object], body: EventBody | None) -> None:
    expected = replace(RUNNING, seq=4, **changes)  # type: ignore[arg-type]
    assert advance(RUNNING, 4, event, now=7.0) == (expected, body)
