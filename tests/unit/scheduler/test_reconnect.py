"""The loop that reconnects to a scheduler: its pauses, and what the agent logs about an outage."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from agent.domain.errors import Refused, SchedulerError
from agent.scheduler.call_status import ROTATED, ConnectionBroken
from agent.scheduler.reconnect import Reconnector, Timings
from agent.settings import SchedulerSettings
from agent.telemetry.metrics import Metrics

UNAVAILABLE = ConnectionBroken("unavailable", "away")
UNTRUSTED = ConnectionBroken("unauthenticated", "expired")


class Connections:
    """A reconnect loop whose connections end with the given errors in turn. After the last error, the loop ends."""

    def __init__(self, *errors: SchedulerError, longest: float = 30.0, timings: Timings | None = None) -> None:
        self.errors = list(errors)
        settings = SchedulerSettings(reconnect_max=longest)
        self.metrics = Metrics()
        self.reconnector = Reconnector(settings, self.metrics, self.connect, timings or Timings(first_pause=0.5))

    async def connect(self) -> None:
        if not self.errors:
            self.reconnector.close()
            return
        raise self.errors.pop(0)


def test_the_bound_of_the_pause_doubles_from_half_a_second_to_the_setting() -> None:
    bounds = [0.5, 1, 2, 4, 8, 16, 30, 30]
    rows = []
    for _ in range(200):
        reconnector = Connections().reconnector
        rows.append([reconnector.pause_after(UNAVAILABLE) for _ in bounds])
    for bound, column in zip(bounds, zip(*rows, strict=True), strict=True):
        assert min(column) < bound / 4, "no jitter"
        assert bound * 3 / 4 < max(column) <= bound


@pytest.mark.parametrize(("stable_after", "longest"), [(0.0, 0.5), (3600.0, 30.0)])
def test_only_a_stable_connection_resets_the_bound(stable_after: float, longest: float) -> None:
    pauses = []
    for _ in range(100):
        reconnector = Connections(timings=Timings(stable_after=stable_after)).reconnector
        for _ in range(10):
            reconnector.pause_after(UNAVAILABLE)
        reconnector.on_connected()
        reconnector.on_disconnected()
        pauses.append(reconnector.pause_after(UNAVAILABLE))
    assert longest / 2 < max(pauses) <= longest


def test_an_untrusted_agent_pauses_nearly_the_longest_time_from_the_first_failure() -> None:
    assert 24.0 <= Connections().reconnector.pause_after(UNTRUSTED) <= 30.0


def test_a_refusal_sets_the_pause() -> None:
    assert Connections().reconnector.pause_after(Refused("later", retry_after=77.0)) == 77.0
    assert Connections().reconnector.pause_after(Refused("later")) <= 0.5


async def test_an_outage_is_logged_once_and_again_when_its_cause_needs_a_person() -> None:
    closed = ConnectionBroken("closed", "closed")
    connections = Connections(UNAVAILABLE, closed, UNTRUSTED, UNAVAILABLE, UNTRUSTED, longest=0.001)
    with capture_logs() as logs:
        await connections.reconnector.run()
    assert [entry["kind"] for entry in logs] == ["unavailable", "unauthenticated"]


async def test_replaced_credentials_cause_no_pause_and_no_warning() -> None:
    connections = Connections(ConnectionBroken(ROTATED, "replaced"), longest=3600.0)
    with capture_logs() as logs:
        await connections.reconnector.run()
    assert [entry["log_level"] for entry in logs] == ["info"]


async def test_a_permanent_refusal_ends_the_loop() -> None:
    with pytest.raises(Refused):
        await Connections(Refused("version", permanent=True), UNAVAILABLE).reconnector.run()
