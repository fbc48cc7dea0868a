"""`retry` and `when` of a pipeline file, also with `inputs`, in the local scheduler with fake agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.console.reports.run_report import ExitCode
from agent.domain.artifacts import Input
from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Outcome, Result
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.server import open_scheduler
from agent.pipeline.events import WaitingForAgent
from agent.protocol import translate
from tests.fakes.agent import CANCELLED, FAILURE, FakeAgent, file_parts, life
from tests.flow.test_local_scheduler import RUN, queue, watch

if TYPE_CHECKING:
    from pathlib import Path

EVICTED = Outcome(Result.FAILED, Stage.COMMANDS, Reason.EVICTED, message="the node has no disk")
RETRY = "name: p\nactions:\n  a: {configuration: {container: i}, commands: [x], retry: 1}\n"
CONDITIONS = """\
name: p
defaults: {configuration: {container: i}}
actions:
  test: {commands: [x]}
  publish: {commands: [x], needs: [test]}
  notify: {commands: [x], needs: [test], when: failure}
  after-notify: {commands: [x], needs: [notify]}
  clean: {commands: [x], needs: [test, publish], when: always}
"""
# The end of `strict` makes `after-strict` ready, which comes before `strict` in the file.
INPUTS = """\
name: p
defaults: {configuration: {container: i}, artifacts: {when: always}}
actions:
  after-strict: {commands: [x], needs: [strict], when: failure}
  build: {commands: [x]}
  strict: {commands: [x], when: always, inputs: [{from: build}]}
  report: {commands: [x], when: always, inputs: [{from: build, optional: true}]}
"""


async def test_a_failure_by_a_named_reason_starts_the_next_attempt(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=2) as agent,
    ):
        await queue(scheduler, RETRY)
        first = await agent.action()
        events = life(b"first\n", EVICTED)
        for event in events[:-1]:
            await agent.event(translate.key(first), event)
        await agent.upload(translate.key(first), file_parts((b"of-the-first", b"x")))
        await agent.event(translate.key(first), events[-1])
        second = await agent.action()
        assert (second.action_id, second.attempt, second.claim) == (first.action_id, 2, 1)
        await agent.acknowledged(translate.key(first), len(events))
        await agent.live(second, life(b"second\n", EVICTED))
        report, seen = await watch(scheduler)
    waits = [event.body.detail for event in seen if isinstance(event.body, WaitingForAgent)]
    assert waits == ["attempt 1 ended with EVICTED (the node has no disk); attempt 2 of at most 2 follows"]
    assert (report.actions["a"].attempts, report.actions["a"].files) == (2, {})
    assert report.exit_code is ExitCode.INFRASTRUCTURE
    assert (tmp_path / RUN / "a.log").read_bytes() == b"second\n"
    assert (tmp_path / RUN / "a.log.1").read_bytes() == b"first\n"


async def test_a_failure_by_another_reason_and_a_cancellation_start_no_attempt(tmp_path: Path) -> None:
    text = RETRY + "  b: {configuration: {container: i}, commands: [x], retry: 1}\n"
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=2) as agent,
    ):
        await queue(scheduler, text)
        await agent.live(await agent.action(), life(outcome=FAILURE))
        cancelled = await agent.action()
        scheduler.dispatcher.cancel(RUN, "stop it")
        await agent.take("cancel")
        await agent.live(cancelled, life(outcome=EVICTED))
        report, _ = await watch(scheduler)
    assert [each.attempts for each in report.actions.values()] == [1, 1]


async def test_actions_run_by_the_outcome_of_what_they_need(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=9) as agent,
    ):
        await queue(scheduler, CONDITIONS)
        await agent.live(await agent.action(), life(outcome=FAILURE))
        names = {(await finished(agent)) for _ in range(2)}
        assert names == {"notify", "clean"}
        assert await finished(agent) == "after-notify"
        failing, _ = await watch(scheduler)

        await queue(scheduler, CONDITIONS, "pipeline2")
        for _ in range(4):
            await finished(agent)
        passing, _ = await watch(scheduler, "pipeline2")
    results = {
        name: (each.result_text, each.outcome and each.outcome.message) for name, each in failing.actions.items()
    }
    assert results["publish"] == ("not run", "not run: it needs test, which did not succeed")
    assert results["clean"][0] == results["after-notify"][0] == "succeeded"
    assert failing.exit_code is ExitCode.FAILED
    assert {name: each.result_text for name, each in passing.actions.items()} == {
        "test": "succeeded",
        "publish": "succeeded",
        "notify": "not run",
        "after-notify": "succeeded",
        "clean": "succeeded",
    }
    assert passing.exit_code is ExitCode.SUCCEEDED


async def test_a_cancelled_pipeline_starts_no_action_that_always_runs(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=9) as agent,
    ):
        await queue(scheduler, CONDITIONS)
        action = await agent.action()
        scheduler.dispatcher.cancel(RUN, "stop it")
        await agent.take("cancel")
        await agent.live(action, life(outcome=CANCELLED))
        report, _ = await watch(scheduler)
        assert agent.queue("action").empty()
    assert {each.outcome.result for each in report.actions.values() if each.outcome} == {Result.CANCELLED}


async def test_an_action_that_did_not_succeed_has_no_files_for_others(tmp_path: Path) -> None:
    async with (
        open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler,
        FakeAgent(scheduler.address, slots=9, features=("inputs",)) as agent,
    ):
        await queue(scheduler, INPUTS)
        build = await agent.action()
        *begin, end = life(outcome=FAILURE)
        for event in begin:
            await agent.event(translate.key(build), event)
        await agent.upload(translate.key(build), file_parts((b"half-built", b"x")))
        await agent.event(translate.key(build), end)
        actions = [await agent.action() for _ in range(2)]
        for action in actions:
            await agent.live(action)
        report, _ = await watch(scheduler)
    found = {action.name: translate.action(action).inputs for action in actions}
    assert found == {"after-strict": (), "report": (Input("build", "", (), optional=True),)}
    outcome = report.actions["strict"].outcome
    assert outcome is not None
    assert (outcome.reason, outcome.message) == (Reason.INPUT_MISSING, "inputs[1]: build did not succeed")


async def finished(agent: FakeAgent) -> str:
    """Let the agent run its next action to success, and return the name of the action."""
    action = await agent.action()
    await agent.live(action)
    await agent.health()
    return action.name
