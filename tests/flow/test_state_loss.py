"""State loss: a scheduler that restarted without its state gets all events of the running sessions again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from agent.domain.actions import Cancel
from agent.protocol.wire import agent_pb2 as wire
from tests.flow.test_app import ACTION, World

if TYPE_CHECKING:
    from pathlib import Path

ALL_KINDS = ["accepted", "stage", "stage", "command_started", "log", "command_finished", "finished"]
KINDS_WITHOUT_LOG = ["accepted", "log", "finished"]


class LossyWorld(World):
    """An agent with its cluster and its scheduler, whose scheduler can lose its state."""

    def lose_state(self) -> None:
        """Delete the events that the scheduler has stored, and end the agent's stream."""
        self.scheduler.forget()
        self.scheduler.peer.end(grpc.StatusCode.UNAVAILABLE, "restarted without its state")

    @property
    def stored_kinds(self) -> list[str]:
        """Return the kinds of the events that the scheduler has stored. Fail if the event numbers have a gap."""
        kinds: list[str] = [event.WhichOneof("event") or "" for event in self.events()]
        assert [event.seq for event in self.events()] == list(range(1, len(kinds) + 1))
        return kinds

    async def until_sent_again(self, kinds: list[str]) -> None:
        """Wait for the end of the action.

        Check that the scheduler then has events of exactly these kinds, in this order. Also wait until the pod is gone,
        and check that the agent has created only one pod.
        """
        await self.scheduler.until('the event "finished" is stored', lambda: self.stored_kinds[-1:] == ["finished"])
        assert self.stored_kinds == kinds
        assert (await self.outcome()).result == wire.SUCCEEDED
        # Do not check `FakeScheduler.breaches` here. It lists event numbers that start again at 1, but after a state
        # loss such event numbers are correct.
        await self.api.until("every pod is deleted", lambda: not self.api.pods)
        await self.app.sessions.idle()
        made = [each for each in self.api.requests if each.verb == "create" and each.path.endswith("/pods")]
        assert len(made) == 1, "the commands must not run twice"


@pytest.fixture
def world(tmp_path: Path) -> LossyWorld:
    return LossyWorld(tmp_path)


async def test_a_state_loss_while_the_commands_run(world: LossyWorld) -> None:
    async with world.agent():
        await world.ready()
        name = await world.begin()
        world.lose_state()
        await world.scheduler.until("the first 3 events are stored", lambda: world.stored_kinds[:3] == ALL_KINDS[:3])
        await world.end(name)
        await world.until_sent_again(ALL_KINDS)
        assert world.scheduler.log_of(ACTION.key) == b"hello\n"


@pytest.mark.parametrize("times", [1, 2])
async def test_a_state_loss_before_the_outcome_is_acknowledged(world: LossyWorld, times: int) -> None:
    async with world.agent():
        await world.ready()
        name = await world.begin()
        world.scheduler.acknowledges = False
        await world.end(name)
        await world.outcome()
        for count in range(times):
            world.scheduler.acknowledges = count == times - 1
            before = len(world.scheduler.peers)
            world.lose_state()
            await world.scheduler.connected(before + 1)
        await world.until_sent_again(ALL_KINDS)
        assert world.scheduler.log_of(ACTION.key) == b"hello\n"


async def test_a_state_loss_during_clean_up_sends_the_outcome_after_a_notice(world: LossyWorld) -> None:
    async with world.agent(cluster={"delete_timeout": 5.0}) as app:
        await world.ready()
        name = await world.begin()
        world.api.slow_removal, world.api.force_works = True, False
        await world.end(name)
        await world.outcome()
        await world.api.until("a pod is asked to be deleted", lambda: bool(world.api.requests_for("delete", "pods")))
        world.lose_state()
        await app.sessions.sessions[ACTION.key.attempt_key].progress.reset_requested.wait()
        await world.api.remove(name)
        await world.until_sent_again(KINDS_WITHOUT_LOG)
        assert b"the scheduler has lost the log" in world.scheduler.log_of(ACTION.key)


async def test_a_cancelled_session_stays_cancelled_after_a_state_loss(world: LossyWorld) -> None:
    async with world.agent():
        await world.ready()
        name = await world.begin()
        world.app.sessions.sessions[ACTION.key.attempt_key].cancel(Cancel(message="not wanted"))
        world.scheduler.acknowledges = False
        await world.end(name)
        await world.outcome()
        world.scheduler.acknowledges = True
        world.lose_state()
        await world.scheduler.until('the event "finished" is stored', lambda: world.stored_kinds[-1:] == ["finished"])
        outcome = await world.outcome()
        assert (outcome.result, outcome.message) == (wire.CANCELLED, "not wanted")
