"""A scheduler that lost its memory asks for the first event again: it is told the whole story, from the pod itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from agent.domain.actions import Cancel
from agent.protocol.wire import agent_pb2 as wire
from tests.flow.test_app import ACTION, World

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("short_waits")
STORY = ["accepted", "stage", "stage", "command_started", "log", "command_finished", "finished"]
SHORT = ["accepted", "log", "finished"]


class Amnesia(World):
    """A world whose scheduler forgets."""

    def forget(self) -> None:
        """Lose all memory, and the stream."""
        self.scheduler.forget()
        self.scheduler.peer.end(grpc.StatusCode.UNAVAILABLE, "restarted with an empty memory")

    @property
    def story(self) -> list[str]:
        """What is stored of the action, by kind; a stage that is told again is one."""
        kinds: list[str] = [event.WhichOneof("event") or "" for event in self.events()]
        assert [event.seq for event in self.events()] == list(range(1, len(kinds) + 1))
        return kinds

    async def told_again(self, story: list[str]) -> None:
        """Wait for the whole story."""
        await self.scheduler.until('the event "finished" is stored', lambda: self.story[-1:] == ["finished"])
        assert self.story == story
        assert (await self.outcome()).result == wire.SUCCEEDED
        # `breaches` notes that numbers were given anew: to a scheduler that had forgotten them.
        await self.api.until("every pod is deleted", lambda: not self.api.pods)
        await self.app.sessions.idle()
        made = [each for each in self.api.requests if each.verb == "create" and each.path.endswith("/pods")]
        assert len(made) == 1, "the commands must not run twice"


@pytest.fixture
def world(tmp_path: Path) -> Amnesia:
    return Amnesia(tmp_path)


async def test_while_the_commands_run(world: Amnesia) -> None:
    async with world.agent():
        await world.ready()
        name = await world.begin()
        world.forget()
        await world.scheduler.until("the first 3 events are stored", lambda: world.story[:3] == STORY[:3])
        await world.end(name)
        await world.told_again(STORY)
        assert world.scheduler.log_of(ACTION.key) == b"hello\n"


@pytest.mark.parametrize("times", [1, 2])
async def test_when_the_outcome_was_told_but_not_acknowledged(world: Amnesia, times: int) -> None:
    async with world.agent():
        await world.ready()
        name = await world.begin()
        world.scheduler.acknowledges = False
        await world.end(name)
        await world.outcome()
        for count in range(times):
            world.scheduler.acknowledges = count == times - 1
            before = len(world.scheduler.peers)
            world.forget()
            await world.scheduler.connected(before + 1)
        await world.told_again(STORY)
        assert world.scheduler.log_of(ACTION.key) == b"hello\n"


async def test_while_the_pod_is_removed_the_outcome_comes_behind_a_notice(world: Amnesia) -> None:
    async with world.agent(cluster={"delete_timeout": 5.0}) as app:
        await world.ready()
        name = await world.begin()
        world.api.slow_removal, world.api.force_works = True, False
        await world.end(name)
        await world.outcome()
        await world.api.until("a pod is asked to be deleted", lambda: bool(world.api.requests_for("delete", "pods")))
        world.forget()
        await app.sessions.living[ACTION.key.attempt_key].forgot.wait()
        await world.api.remove(name)
        await world.told_again(SHORT)
        assert b"lost by the scheduler" in world.scheduler.log_of(ACTION.key)


async def test_a_cancel_that_has_ended_the_commands_stays_one(world: Amnesia) -> None:
    async with world.agent():
        await world.ready()
        name = await world.begin()
        world.app.sessions.living[ACTION.key.attempt_key].cancel(Cancel(message="not wanted"))
        world.scheduler.acknowledges = False
        await world.end(name)
        await world.outcome()
        world.scheduler.acknowledges = True
        world.forget()
        await world.scheduler.until('the event "finished" is stored', lambda: world.story[-1:] == ["finished"])
        outcome = await world.outcome()
        assert (outcome.result, outcome.message) == (wire.CANCELLED, "not wanted")
