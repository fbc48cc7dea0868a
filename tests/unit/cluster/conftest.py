"""Fixtures of the tests of agent.cluster: a fake API server, and retries without pauses."""

from __future__ import annotations

import pytest

from agent.cluster.api import client as clients
from agent.cluster.api.timings import ApiTimings
from tests.fakes.api import FakeApi


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the client repeat failed requests without a pause.

    A module opts in: `pytestmark = pytest.mark.usefixtures("no_backoff")`.
    """
    monkeypatch.setattr(clients, "DEFAULT_TIMINGS", ApiTimings(retry_pause=0.0))
