"""A series of nudges in virtual time: when nudges are sent, and what ends the series."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from agent.cluster.ending.nudger import Nudger, NudgeSwitch
from agent.cluster.ending.plan import action_ended
from agent.cluster.environment.watch import PodState
from agent.cluster.pod.status import is_final

if TYPE_CHECKING:
    from agent.domain.json import Object

pytestmark = pytest.mark.looptime


class FakeSwitch:
    """Records nudges with their times. It can be switched off after some."""

    def __init__(self, accepts: int = 100) -> None:
        self.accepts = accepts
        self.sent: list[tuple[float, int]] = []

    @property
    def on(self) -> bool:
        return len(self.sent) <= self.accepts

    async def send(self, path: str, uid: str, millicores: int) -> bool:
        assert (path, uid) == ("/pods/p", "u")
        self.sent.append((round(asyncio.get_running_loop().time() - START[0], 3), millicores))
        return self.on


START = [0.0]


def pod(*, uid: str = "u", phase: str = "Running", ended: bool = False) -> Object:
    state = {"terminated": {"exitCode": 0}} if ended else {"running": {}}
    helper = {"name": "helper", "resources": {"requests": {"cpu": "10m"}}}
    return {
        "metadata": {"uid": uid},
        "spec": {"containers": [helper]},
        "status": {"phase": phase, "containerStatuses": [{"name": "action", "state": state}]},
    }


def nudger(switch: FakeSwitch) -> tuple[Nudger, PodState]:
    state = PodState("p")
    state.update(pod())
    found = Nudger(cast("NudgeSwitch", switch), "/pods/p", lambda: state)
    found.begin(pod())
    START[0] = asyncio.get_running_loop().time()
    return found, state


async def test_nudges_follow_each_other_with_growing_pauses_and_stop() -> None:
    switch = FakeSwitch()
    one, _ = nudger(switch)
    await one.run(action_ended)
    assert switch.sent == [(0.05, 9), (0.15, 8), (0.35, 7), (0.75, 6)]
    await one.run(action_ended)
    assert len(switch.sent) == 4


async def test_no_nudge_is_sent_when_the_status_is_there_already() -> None:
    switch = FakeSwitch()
    one, state = nudger(switch)
    state.update(pod(ended=True))
    await one.run(action_ended)
    assert switch.sent == []


@pytest.mark.parametrize("change", [pod(ended=True), None, pod(uid="another")], ids=["ended", "gone", "replaced"])
async def test_the_series_ends_with_the_event_and_not_with_the_pause(change: Object | None) -> None:
    switch = FakeSwitch()
    one, state = nudger(switch)
    asyncio.get_running_loop().call_later(0.2, state.update, change)
    await one.run(action_ended)
    assert switch.sent == [(0.05, 9), (0.15, 8)]
    assert asyncio.get_running_loop().time() - START[0] == pytest.approx(0.2)


async def test_other_events_do_not_hurry_the_series() -> None:
    switch = FakeSwitch()
    one, state = nudger(switch)
    for number in range(1, 15):
        asyncio.get_running_loop().call_later(number / 100, state.update, pod())
    await one.run(action_ended)
    assert [at for at, _ in switch.sent] == [0.05, 0.15, 0.35, 0.75]


async def test_the_series_ends_when_a_nudge_is_refused() -> None:
    switch = FakeSwitch(accepts=1)
    one, _ = nudger(switch)
    await one.run(action_ended)
    assert switch.sent == [(0.05, 9), (0.15, 8)]


async def test_after_the_deletion_the_first_nudge_comes_at_once() -> None:
    switch = FakeSwitch()
    one, state = nudger(switch)
    asyncio.get_running_loop().call_later(0.3, state.update, pod(ended=True, phase="Succeeded"))
    await one.run(is_final, deleting=True)
    assert switch.sent == [(0.0, 9)]


async def test_the_deletion_has_a_nudge_left_after_the_longest_series() -> None:
    switch = FakeSwitch()
    one, _ = nudger(switch)
    await one.run(action_ended)
    await one.run(is_final, deleting=True)
    assert [millicores for _, millicores in switch.sent] == [9, 8, 7, 6, 5]
