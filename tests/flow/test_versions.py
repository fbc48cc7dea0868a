"""Agents and schedulers of different versions: no action ever runs without its services.

An agent or a scheduler of the version before services names no feature. Such an agent ignores the field `services`, so
it would run the commands alone and report a success.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent.console.reports.run_report import ExitCode
from agent.domain.actions import Service
from agent.domain.events import Accepted
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler
from agent.pipeline.events import WaitingForAgent
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.agent import FakeAgent, succeed
from tests.flow.test_app import ACTION, World
from tests.flow.test_local_scheduler import ONE, watch
from tests.flow.test_local_scheduler import queue as submit

if TYPE_CHECKING:
    from pathlib import Path

QUICK = SchedulerOptions(resume_grace=0.05)
WITH_SERVICES = """
name: p
actions:
  a: {configuration: {container: i}, commands: [x], services: {db: {container: postgres}}}
"""
SERVICES = ["teleport", "services"]


def old_agent(address: str) -> FakeAgent:
    """Return an agent of the version before services. It runs every action that it gets, and reports a success."""
    return FakeAgent(address, pod="old", slots=9, answer=succeed)


# ---- an agent of the version before services, and this scheduler


async def test_an_action_waits_for_an_agent_that_has_its_features_and_watchers_get_the_reason(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access(), QUICK) as scheduler,
        old_agent(scheduler.address) as old,
    ):
        await submit(scheduler, WITH_SERVICES)
        await submit(scheduler, WITH_SERVICES, "pipeline2")
        await submit(scheduler, ONE, "pipeline3")
        following = asyncio.create_task(watch(scheduler))
        assert (await watch(scheduler, "pipeline3"))[0].exit_code is ExitCode.SUCCEEDED
        # The reports of an agent without the feature change nothing and repeat nothing.
        await old.health()
        await old.health()
        assert old.seqs.keys() == {("pipeline3/a", 1)}
        async with FakeAgent(scheduler.address, pod="new", slots=1, features=SERVICES) as new:
            for _ in range(2):
                action = await new.action()
                assert [each.name for each in action.services] == ["db"]
                await new.live(action)
                await new.health()
            report, seen = await following
        assert old.seqs.keys() == {("pipeline3/a", 1)}
    waits = [event.body.detail for event in seen if isinstance(event.body, WaitingForAgent)]
    # The new agent has no free slot before its first health report.
    assert waits == ["no connected agent has the feature services", "the agents that can run it have no free slot"]
    assert report.exit_code is ExitCode.SUCCEEDED


async def test_no_later_attempt_goes_to_an_agent_without_the_feature(tmp_path: Path) -> None:
    """The first agent dies with the action, then the scheduler restarts. An old agent has free slots all the time."""
    async with open_scheduler("127.0.0.1:0", tmp_path, Access(), QUICK) as scheduler:
        async with (
            old_agent(scheduler.address) as old,
            FakeAgent(scheduler.address, pod="dies", features=SERVICES) as dies,
        ):
            await submit(scheduler, WITH_SERVICES)
            key = translate.key(await dies.action())
            await dies.event(key, Accepted("pod"))
            await dies.acknowledged(key, 1)
            await dies.leave()
            await submit(scheduler, ONE, "pipeline3")
            await watch(scheduler, "pipeline3")
        assert old.seqs.keys() == {("pipeline3/a", 1)}
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access(), QUICK) as scheduler,
        old_agent(scheduler.address) as old,
    ):
        # The grace of the lost agent ends only after the restart, perhaps.
        await submit(scheduler, ONE, "pipeline4")
        await watch(scheduler, "pipeline4")
        async with FakeAgent(scheduler.address, pod="new", features=SERVICES) as new:
            again = await new.action()
            assert (again.action_id, again.attempt) == (key.action_id, 2)
            assert [each.name for each in again.services] == ["db"]
            await new.live(again)
        assert old.seqs.keys() == {("pipeline4/a", 1)}


# ---- a scheduler of another version, and this agent

LATER_FIELD = b"\xc2\x3e\x01x"  # the field 1000 of a later version, a text of one byte


@pytest.mark.parametrize(
    ("most", "later", "message"),
    [
        (0, b"", "services: 1 are too many; at most 0 (setting services.max)"),
        (5, LATER_FIELD, "field number 1000: a field that this version of the agent does not know"),
    ],
    ids=["services without the feature", "a field of a later version"],
)
async def test_an_agent_refuses_what_it_cannot_serve_instead_of_running_the_commands_alone(
    tmp_path: Path, most: int, later: bytes, message: str
) -> None:
    """The scheduler names no feature, as one of the version before services, and does not look at the agent's."""
    world = World(tmp_path)
    async with world.agent(services={"max": most}):
        await world.ready()
        register = world.scheduler.peer.register
        assert register is not None
        assert ("services" in register.features) == (most > 0)
        action = translate.action_message(replace(ACTION, services=(Service("db", "postgres"),)))
        action.MergeFromString(later)
        world.scheduler.peer.send(action=action)
        outcome = await world.outcome()
        assert (outcome.result, outcome.reason) == (wire.FAILED, wire.INVALID_CONFIGURATION)
        assert message in outcome.message + world.scheduler.log_of(ACTION.key).decode()
        assert world.api.pods == {}
