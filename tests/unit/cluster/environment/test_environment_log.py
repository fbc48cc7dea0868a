"""How the agent reads the log of an environment.

The agent cannot read the log of an action that an older release has started. It returns one LogLost instead.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

import pytest

from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogEnd, LogLost, LogPiece
from tests.fakes.api import FakeApi
from tests.unit.cluster.environment.test_backend import ACTION, RUNNING, backend_on

REFUSED = [LogLost("an agent of an older release has started the action, and this release cannot read its log")]


@pytest.mark.parametrize(
    ("cursor", "older_pod", "expected"),
    [
        (Cursor(), False, [LogPiece(b"one\n", 0), LogEnd()]),
        (Cursor(2), False, [LogPiece(b"e\n", 2), LogEnd()]),
        (Cursor.decode(b"1|t|1|2|3|4"), True, REFUSED),
        (Cursor(), True, REFUSED),
    ],
)
async def test_the_log_of_an_environment(
    api: FakeApi, cursor: Cursor, older_pod: bool, expected: list[LogPiece | LogEnd | LogLost]
) -> None:
    async with backend_on(api) as backend:
        environment = backend.environment(ACTION)
        await environment.create()
        log = await api.begin_log(environment.plan.name)
        log.write(b"one\n")
        log.end()
        await api.status(environment.plan.name, phase="Running", containerStatuses=RUNNING)
        if older_pod:
            environment.plan = replace(environment.plan, log_key=0)
        async with aclosing(environment.log(cursor)) as items:
            assert [item async for item in items] == expected
        environment.release()
