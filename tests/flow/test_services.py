"""Actions with services, from the session's view: what it reports, when the commands begin, and each failure."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from agent.domain.actions import Action, HealthCommand, Key, Service, ServiceLog
from agent.domain.errors import ClusterError, Reason, Stage
from agent.domain.events import LogChunk, ServiceChanged, ServiceState, Source, StageChanged
from agent.domain.log_cursor import Cursor
from agent.domain.observations import (
    Exited,
    Lost,
    Observation,
    Running,
    ServiceOutput,
    SetupFailed,
    Waiting,
)
from agent.domain.outcome import Result
from agent.domain.session_state import Resume
from tests.fakes.cluster import FakeEnvironment, Script
from tests.flow.test_run_action import SETTLE, Rig, life

STARTING, READY, ENDED = ServiceState
DB = Service("db", "postgres", ports=(5432,))
QUEUE = Service("queue", "redis", ports=(6379,))
HEALTHY = Service("db", "postgres", health=HealthCommand(("x",)))


def seen(state: ServiceState, name: str = "db", code: int | None = None) -> tuple[ServiceChanged, ...]:
    return (ServiceChanged(name, state, code),)


def reported(sent: Any) -> list[tuple[str, ServiceState]]:
    return [(event.name, event.state) for event in sent.events if isinstance(event, ServiceChanged)]


def service_log(sent: Any) -> dict[str, bytes]:
    """Return the log of each service that was sent."""
    found: dict[str, bytes] = {}
    for event in sent.events:
        if isinstance(event, LogChunk) and event.source is Source.SERVICE:
            found[event.service] = found.get(event.service, b"") + event.data
    return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def waiting_for_ports(rig: Rig, **fields: Any) -> FakeEnvironment:
    """Start an action with two services. Return its environment when its log is read and no port accepts."""
    script = Script(holds=frozenset({"commands"}), setups=[(Waiting("x"), Running(services=seen(STARTING)))])
    rig.backend.script = lambda _: replace(script, **fields)
    rig.sessions.action(Action(Key("a"), "alpine", ("one", "two"), services=(DB, QUEUE)))
    return await rig.backend.at("a", "commands")


async def test_the_commands_begin_when_all_ports_accept(rig: Rig) -> None:
    async with rig.open():
        environment = await waiting_for_ports(rig)
        sent = rig.sink["a"]
        assert sent.stages == [Stage.SETUP]
        await environment.mark("r:2")
        await environment.mark("r:1")
        await environment.unblock("commands")
    details = [event.detail for event in sent.events if isinstance(event, StageChanged)]
    assert details[2:5] == [
        "waiting for service db: port 5432; queue: port 6379",
        "waiting for service db: port 5432",
        "",
    ]
    assert sent.stages[:2] == [Stage.SETUP, Stage.COMMANDS]
    assert reported(sent) == [("db", STARTING), ("queue", READY), ("db", READY)]
    assert sent.log == b"hello\nhello\n"
    assert (environment.services.ready, environment.services.released) == (["queue", "db"], 1)
    assert rig.sample("services_total", result="ready") == 2


@pytest.mark.looptime
async def test_the_time_until_the_services_are_ready_is_no_time_of_the_commands(rig: Rig) -> None:
    rig = Rig(policy={"default_timeout": 5})
    async with rig.open():
        environment = await waiting_for_ports(rig)
        await asyncio.sleep(100)
        await environment.mark("r:1")
        await environment.mark("r:2")
        await asyncio.sleep(4)
        await environment.unblock("commands")
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED


@pytest.mark.parametrize("services", [(HEALTHY,), (Service("db", "x"),)], ids=["health command", "neither"])
async def test_only_the_agent_starts_commands_whose_services_it_alone_can_see(rig: Rig, services: Any) -> None:
    waits = Waiting("waiting for service db: health command", seen(STARTING))
    setups: list[Sequence[Observation]] = [(waits, Running(services=seen(READY)))]
    sent = await life(rig, Script(setups=setups), services=services)
    steps = rig.backend.environments["a"].steps
    assert steps.index("release commands") < steps.index("log")
    assert sent.outcome.result is Result.SUCCEEDED
    assert reported(sent) == [("db", STARTING), ("db", READY)]


async def test_a_service_that_fails_the_setup_is_the_reason_and_its_last_lines_are_sent(rig: Rig) -> None:
    failed = SetupFailed(Reason.SERVICE_FAILED, "service db ended with exit code 1", services=seen(ENDED, code=1))
    script = Script(setups=[(Waiting("x"), failed)], service_logs={"db": b"boom\nlast words\n", "queue": b""})
    sent = await life(rig, script, services=(DB, QUEUE))
    assert (sent.outcome.reason, sent.outcome.stage) == (Reason.SERVICE_FAILED, Stage.SETUP)
    assert sent.outcome.message == "service db ended with exit code 1: last words"
    assert service_log(sent) == {"db": b"boom\nlast words\n"}
    assert reported(sent) == [("db", ENDED)]
    assert rig.sample("services_total", result="not_ready") == 2


async def test_a_service_that_fails_while_the_helper_dials_fails_the_setup(rig: Rig) -> None:
    async with rig.open():
        environment = await waiting_for_ports(rig)
        await environment.show(SetupFailed(Reason.SERVICE_FAILED, "service db did not accept"))
        await environment.unblock("commands")
    sent = rig.sink["a"]
    assert (sent.outcome.reason, sent.outcome.stage) == (Reason.SERVICE_FAILED, Stage.SETUP)


async def fails_while_commands_run(rig: Rig, last: Any, **fields: Any) -> Any:
    """Let a service fail while the commands run. The environment then ends with the observation `last`."""
    rig.backend.script = lambda _: Script(holds=frozenset({"commands"}), end=last, **fields)
    async with rig.open() as sessions:
        sessions.action(Action(Key("a"), "alpine", ("one",), services=(HEALTHY,)))
        environment = await rig.backend.at("a", "commands")
        await environment.mark("s:1")
        await asyncio.sleep(SETTLE)
        await environment.show(Running(service_failure="service db ended with exit code 4"))
    assert environment.interrupts, "the commands get TERM"
    return rig.sink["a"]


async def test_a_service_that_fails_while_the_commands_run_stops_them(rig: Rig) -> None:
    end = Exited(143, 1, Reason.COMMAND_FAILED, "x", files=False)
    sent = await fails_while_commands_run(rig, end, service_logs={"db": b"a\n"})
    outcome = sent.outcome
    assert (outcome.result, outcome.reason, outcome.stage) == (Result.FAILED, Reason.SERVICE_FAILED, Stage.COMMANDS)
    assert (outcome.exit_code, outcome.command) == (None, 1)
    assert outcome.message == "service db ended with exit code 4: a"
    assert service_log(sent) == {"db": b"a\n"}


async def test_an_eviction_is_not_hidden_by_the_service_that_it_ended(rig: Rig) -> None:
    sent = await fails_while_commands_run(rig, Lost(Reason.EVICTED, "low on memory"))
    assert (sent.outcome.reason, sent.outcome.message) == (Reason.EVICTED, "low on memory")


async def test_commands_that_ended_after_a_failed_service_have_no_exit_code(rig: Rig) -> None:
    end = Exited(0, 2, Reason.SERVICE_FAILED, "service db ended with exit code 1", files=False)
    sent = await life(rig, Script(end=end), services=(HEALTHY,))
    assert (sent.outcome.reason, sent.outcome.exit_code) == (Reason.SERVICE_FAILED, None)


# ---- logs


async def test_a_success_costs_no_log_of_a_service(rig: Rig) -> None:
    sent = await life(rig, Script(service_logs={"db": b"noise\n"}), services=(HEALTHY,))
    assert service_log(sent) == {}


async def test_after_a_failure_the_last_lines_are_sent_masked_and_a_silent_service_stays_silent(rig: Rig) -> None:
    silent = replace(QUEUE, ports=(), log=ServiceLog.NONE)
    logs: Any = {"db": b"password hunter2-hunter2\n", "queue": b"noise\n"}
    script = Script(codes=(3,), service_logs=logs)
    sent = await life(rig, script, services=(HEALTHY, silent), secrets={"TOKEN": "hunter2-hunter2"})
    assert service_log(sent) == {"db": b"password ***\n"}
    assert sent.outcome.message == "command 1 failed with exit code 3"


async def test_a_log_that_cannot_be_read_changes_no_verdict(rig: Rig) -> None:
    script = Script(codes=(3,), service_logs={"db": ClusterError("gone")})
    sent = await life(rig, script, services=(HEALTHY,))
    assert sent.outcome.reason is Reason.COMMAND_FAILED
    assert b"[the log of service db cannot be read: gone]" in sent.log


async def test_a_live_log_is_sent_once_with_its_cursor(rig: Rig) -> None:
    live = replace(HEALTHY, log=ServiceLog.LIVE)
    parts = [ServiceOutput(b"one\n", b"c1"), ServiceOutput(b"x" * 70_000 + b"\n", b"c2")]
    script = Script(codes=(3,), live_logs={"db": parts}, service_logs={"db": b"one\n"})
    sent = await life(rig, script, services=(live,))
    assert service_log(sent)["db"].replace(b"\n", b"") == b"one" + b"x" * 70_000
    chunks = [event for event in sent.events if isinstance(event, LogChunk) and event.source is Source.SERVICE]
    assert all(len(each.data) <= 64 * 1024 and each.data.endswith(b"\n") for each in chunks)
    assert [each.service_cursor for each in chunks] == [b"c1", b"c2", b"c2"]


async def test_a_live_log_that_cannot_be_followed_falls_back_to_its_last_lines(rig: Rig) -> None:
    live = replace(HEALTHY, log=ServiceLog.LIVE)
    script = Script(codes=(3,), live_logs={"db": ClusterError("too many logs")}, service_logs={"db": b"last\n"})
    sent = await life(rig, script, services=(live,))
    assert b"[the log of service db is not followed: too many logs; its last lines follow" in sent.log
    assert service_log(sent) == {"db": b"last\n"}


async def test_an_adopted_session_continues_the_logs_of_its_services(rig: Rig) -> None:
    live = replace(DB, log=ServiceLog.LIVE)
    action = Action(Key("a", 1, 2), "", ("", ""), services=(live,))
    async with rig.open() as sessions:
        environment = FakeEnvironment(rig.backend, action, Script())
        rig.backend.environments["a"] = environment
        rig.backend.alive.add(environment.name)
        environment.creations = 1
        await environment.show(Running(services=seen(READY)))
        assert sessions.adopt(action, environment)
        resume = Resume(action.key, 5, Cursor(), Stage.COMMANDS, 1, service_cursors={"db": b"c7"})
        sessions.resume(resume)
    assert environment.services.cursors == {"db": b"c7"}
    # The scheduler knows that the commands have begun, so nothing is awaited again.
    assert environment.services.released == 1
    assert rig.sink["a"].outcome.result is Result.SUCCEEDED


async def test_an_adopted_session_whose_commands_have_not_begun_is_released_again(rig: Rig) -> None:
    action = Action(Key("a", 1, 2), "", ("", ""), services=(HEALTHY,))
    async with rig.open() as sessions:
        environment = FakeEnvironment(rig.backend, action, Script())
        rig.backend.environments["a"] = environment
        rig.backend.alive.add(environment.name)
        environment.creations = 1
        await environment.show(Running(services=seen(READY)))
        assert sessions.adopt(action, environment)
        sessions.resume(Resume(action.key, 2, Cursor(), Stage.SETUP))
    assert "release commands" in environment.steps
