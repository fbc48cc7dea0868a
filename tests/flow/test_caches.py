"""Caches of a session: when they are restored and saved, and that no fault of a cache changes an outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from agent.domain.actions import Action, Cache, CacheScope, Cancel, Key, When
from agent.domain.artifacts import Input
from agent.domain.errors import ClusterError, Reason, Stage
from agent.domain.events import CacheKind, CacheResult, StageChanged
from agent.domain.observations import Running
from agent.domain.outcome import Result
from agent.domain.session_state import Resume
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import event_codec, parser
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.agent import FakeAgent
from tests.fakes.agent import life as lived
from tests.fakes.cluster import Script
from tests.flow.test_run_action import Rig, action, life

if TYPE_CHECKING:
    from pathlib import Path

SCOPE = CacheScope("main", ("main",))
CACHES = (Cache("pip-1", (".pip",)), Cache("npm-1", (".npm",), save=When.ALWAYS))
HIT = CacheResult("pip-1", CacheKind.HIT, "pip-1", 7, 0.5)
MISS = CacheResult("npm-1", CacheKind.MISS)
SAVED = CacheResult("npm-1", CacheKind.SAVED, "", 9, 0.5)
BROKEN = ClusterError("the exec broke", retryable=True)
USED: dict[str, Any] = {"caches": CACHES, "cache_scope": SCOPE}
RUN = "abcdefgh"
PIPELINE = """
name: cached
actions:
  one:
    configuration: {container: debian}
    commands: [make]
    cache: [{key: k, paths: [p]}]
"""


def results(sent: Any) -> list[tuple[str, str]]:
    return [(each.key, each.kind.value) for each in sent.events if isinstance(each, CacheResult)]


def order(rig: Rig) -> list[str]:
    steps = ("upload_workspace", "restore caches", "inputs", "commands", "files", "save caches", "remove")
    return [step for step in rig.backend.environments["a"].steps if step in steps]


async def test_caches_come_before_the_inputs_and_are_saved_after_the_artifacts() -> None:
    rig = Rig()
    sent = await life(rig, Script(caches=[[HIT, MISS], [SAVED]], interactive=True), **USED)
    steps = ["upload_workspace", "restore caches", "inputs", "commands", "files", "save caches", "remove"]
    assert order(rig) == steps
    assert results(sent) == [("pip-1", "hit"), ("npm-1", "miss"), ("npm-1", "saved")]
    assert sent.outcome.result is Result.SUCCEEDED
    details = [each.detail for each in sent.events if isinstance(each, StageChanged) and each.detail]
    assert [text for text in details if "cache" in text] == ["restoring caches", "saving caches"]
    assert not any("0 files" in text for text in details)
    for operation, result in (("restore", "hit"), ("restore", "miss"), ("save", "saved")):
        assert rig.sample("cache_operations_total", operation=operation, result=result) == 1
    assert rig.sample("cache_bytes_total", operation="save") == 9
    assert rig.sample("cache_seconds_count", operation="restore") == 1
    assert b"cache" not in sent.log


async def test_nothing_is_saved_after_hits() -> None:
    rig = Rig()
    hits: list[CacheResult | BaseException] = [HIT, CacheResult("npm-1", CacheKind.HIT, "npm-1")]
    await life(rig, Script(caches=[list(hits)]), **USED)
    assert "save caches" not in order(rig)


@pytest.mark.parametrize("restored", [[BROKEN], [HIT, BROKEN], [RuntimeError("a defect")], []])
async def test_a_restore_that_breaks_fails_no_action(restored: list[Any]) -> None:
    rig = Rig()
    sent = await life(rig, Script(caches=[restored, [BROKEN]]), **USED)
    assert sent.outcome.result is Result.SUCCEEDED
    missed = [("pip-1", "hit" if HIT in restored else "miss"), ("npm-1", "miss")]
    assert results(sent) == (missed if restored else [])
    assert b"[caches are not saved: the exec broke]" in sent.log
    assert (b"[caches are not restored: " in sent.log) is bool(restored)
    assert rig.sample("internal_errors_total", where="session") == any(isinstance(e, RuntimeError) for e in restored)


@pytest.mark.parametrize(
    ("fields", "settings", "trouble", "why"),
    [
        ({"cache_scope": None}, {}, "", b"the scheduler gave this action no scope"),
        ({"cache_scope": CacheScope()}, {}, "", b"the scheduler gave this action no scope"),
        ({}, {}, "this agent has no cache", b"this agent has no cache"),
    ],
)
async def test_without_a_scope_or_a_store_caches_are_skipped(
    fields: dict[str, Any], settings: dict[str, Any], trouble: str, why: bytes
) -> None:
    rig = Rig(**settings)
    sent = await life(rig, Script(cache_trouble=trouble), **USED | fields)
    assert results(sent) == [("pip-1", "skipped"), ("npm-1", "skipped")]
    assert sent.log.count(why) == 1
    assert order(rig) == ["inputs", "commands", "files", "remove"]
    assert sent.outcome.result is Result.SUCCEEDED


@pytest.mark.parametrize(
    "changed", [{"cache_scope": CacheScope("", ("main",))}, {"caches": (Cache("k", ("p",), save=When.NEVER),)}]
)
async def test_a_cache_that_may_only_be_read_is_not_saved(changed: dict[str, Any]) -> None:
    rig = Rig()
    await life(rig, Script(caches=[[MISS]]), **USED | changed)
    assert "save caches" not in order(rig)
    rig = Rig(policy={"cache": "read"})
    await life(rig, Script(caches=[[MISS]]), **USED)
    assert "save caches" not in order(rig)


async def test_a_failure_saves_only_what_is_always_saved() -> None:
    rig = Rig()
    sent = await life(rig, Script(codes=(1,), caches=[[HIT, MISS], [SAVED]]), **USED)
    assert "save caches" in order(rig)
    assert sent.outcome.reason is Reason.COMMAND_FAILED
    rig = Rig()
    await life(rig, Script(codes=(1,), caches=[[MISS]]), caches=CACHES[:1], cache_scope=SCOPE)
    assert "save caches" not in order(rig)


@pytest.mark.parametrize("step", ["restore caches", "commands", "save caches"])
async def test_a_cancellation_ends_the_work_on_caches(step: str) -> None:
    rig = Rig()
    rig.backend.script = lambda _: Script(caches=[[MISS, MISS], [SAVED]], holds=frozenset({step}))
    async with rig.open() as sessions:
        sessions.action(action(**USED))
        await rig.backend.at("a", step)
        sessions.cancel(("a", 1), Cancel(message="enough"))
        await asyncio.sleep(0.01)
    outcome = rig.sink["a"].outcome
    if step == "save caches":
        assert outcome.result is Result.SUCCEEDED, "the commands had ended, and their files were stored"
    else:
        assert outcome.reason is Reason.CANCELLED
        assert "save caches" not in order(rig)


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        (Stage.SETUP, ["restore caches", "inputs", "commands", "files", "save caches"]),
        (Stage.COMMANDS, ["commands", "files", "save caches"]),
        (Stage.ARTIFACTS, ["commands", "files", "save caches"]),
    ],
)
async def test_an_adopting_agent_goes_on_where_the_former_agent_was_killed(stage: Stage, steps: list[str]) -> None:
    rig, key = Rig(), Key("a", 1, 2)
    restored: list[list[CacheResult | BaseException]] = [[HIT, MISS]] if stage is Stage.SETUP else []
    rig.backend.script = lambda _: Script(caches=[*restored, [SAVED]])
    async with rig.open() as sessions:
        environment = rig.backend.environment(Action(key, "", ("", ""), timeout=60.0))
        environment.creations = 1
        await environment.show(Running())
        assert sessions.adopt(environment.action, environment)
        sessions.resume(Resume(key, seq=3, stage=stage, command=int(stage is not Stage.SETUP), action=action(**USED)))
    assert [step for step in order(rig) if step != "remove"] == steps
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED
    assert results(rig.sink["a"])[-1:] == [("npm-1", "saved")]


async def test_inputs_and_caches_start_the_commands_once() -> None:
    rig = Rig()
    rig.sink.inputs = {1: []}
    await life(rig, Script(caches=[[HIT, MISS], []]), inputs=(Input("build", "", (), optional=True),), **USED)
    assert order(rig).count("inputs") == 1


async def test_the_local_scheduler_gives_scopes_and_keeps_results(tmp_path: Path) -> None:
    async with open_scheduler("127.0.0.1:0", tmp_path, Access()) as scheduler:
        async with FakeAgent(scheduler.address, features=("cache",)) as agent:
            await scheduler.dispatcher.submit(RUN, parser.parse(PIPELINE, "p.yaml"), {})
            sent = await agent.action()
            received = translate.action(sent)
            assert received.caches == (Cache("k", ("p",)),)
            assert received.cache_scope is not None
            assert received.cache_scope.write == received.cache_scope.read[0]
            result = CacheResult("k", CacheKind.FALLBACK, "k0", 5, 0.5, "why")
            assert translate.event(translate.event_message(Key("x"), 1, result)).event == result
            events = lived()
            await agent.live(sent, [*events[:2], result, *events[2:]])
        seen = [event_codec.decode(each) async for each in scheduler.registry.watch(RUN)]
        assert result in [each.body for each in seen if each is not None]
    async with (
        open_scheduler("127.0.0.1:0", tmp_path / "other", Access()) as scheduler,
        FakeAgent(scheduler.address) as agent,
    ):
        await scheduler.dispatcher.submit(RUN, parser.parse(PIPELINE, "p.yaml"), {})
        message = await agent.action()
        assert (len(message.caches), message.HasField("cache_scope")) == (0, False), "no action needs its caches"
        assert isinstance(message, wire.Action)
