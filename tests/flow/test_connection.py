"""The agent's side of the stream against a real server on loopback."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from agent.actions import (
    Accepted,
    Action,
    Cancel,
    Cursor,
    FileData,
    FileEnd,
    FileStart,
    Finished,
    Health,
    Key,
    LogChunk,
    Outcome,
    Readiness,
    Result,
    Resume,
    Source,
)
from agent.errors import ActionFailed, Reason, Refused, SchedulerError, Stage
from agent.metrics import Metrics
from agent.scheduler import translate
from agent.scheduler.connection import Connection, Identity
from agent.scheduler.health import HealthReporter
from agent.scheduler.outbox import Outbox
from agent.scheduler.wire import agent_pb2 as wire
from agent.settings import AgentSection, SchedulerSettings, Tls
from tests.fakes.scheduler import FakeScheduler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class Recorder:
    """Handlers that note what they are told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.changed = asyncio.Condition()
        self.on_action: Callable[[Action], None] = lambda action: None

    def note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))
        task = asyncio.ensure_future(self.notify())
        task.set_name("recorder")

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def got(self, name: str, count: int = 1) -> tuple[Any, ...]:
        def enough() -> bool:
            return sum(call[0] == name for call in self.calls) >= count

        async with self.changed:
            await self.changed.wait_for(enough)
        return [call[1] for call in self.calls if call[0] == name][-1]

    def registered(self, interval: float, grace: float) -> None:
        self.note("registered", interval, grace)

    def action(self, action: Action) -> None:
        self.on_action(action)
        self.note("action", action)

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        self.note("action_failed", key, failure)

    def cancel(self, attempt_key: tuple[str, int], cancel: Cancel) -> None:
        self.note("cancel", attempt_key, cancel)

    def resume(self, resume: Resume) -> None:
        self.note("resume", resume)

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        self.note("discard", key, claimed_by_other, message)

    def drain(self, message: str) -> None:
        self.note("drain", message)


class Rig:
    """An agent's side of the stream, and the scheduler that it talks to."""

    def __init__(self, scheduler: FakeScheduler, **settings: Any) -> None:
        self.scheduler = scheduler
        values: dict[str, Any] = {
            "address": scheduler.address,
            "tls": Tls(enabled=False),
            "reconnect_max": 0.02,
            "keepalive": 15.0,
            "window": 1 << 17,
        } | settings
        self.settings = SchedulerSettings(**values)
        self.metrics = Metrics()
        self.outbox = Outbox(self.settings.window, self.metrics)
        self.now = Health(Readiness.READY, slots=3)
        self.health = HealthReporter(lambda: self.now, self.outbox.wake)
        self.handlers = Recorder()
        self.identity = Identity.of("pod-uid", "1.2.3")
        self.connection = Connection(
            self.settings,
            AgentSection(pool="blue", slots=3, labels={"zone": "a"}),
            self.identity,
            self.outbox,
            self.handlers,
            self.metrics,
            self.health,
        )
        self.running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.running = asyncio.create_task(self.connection.run(), name="connection")

    async def stop(self) -> None:
        if self.running is not None:
            self.running.cancel()
            await asyncio.gather(self.running, return_exceptions=True)

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"sealci_agent_{name}", labels) or 0.0


@asynccontextmanager
async def rig(scheduler: FakeScheduler, **settings: Any) -> AsyncIterator[Rig]:
    if not scheduler.port:
        await scheduler.start()
    made = Rig(scheduler, **settings)
    made.start()
    try:
        async with asyncio.timeout(20):
            yield made
        assert scheduler.breaches == []
    finally:
        await made.stop()
        await scheduler.stop()


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


ACTION = Action(Key("build", 1, 1), "alpine", ("true",))


async def test_registers_first_and_only_then_talks(scheduler: FakeScheduler) -> None:
    scheduler.answers_registration = False
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        register = peer.register
        assert register is not None
        assert register.agent_id.startswith("pod-uid.")
        assert (register.protocol_version, register.agent_version, register.pool, register.slots) == (
            1,
            "1.2.3",
            "blue",
            3,
        )
        assert dict(register.labels) == {"zone": "a"}
        assert not agent.connection.registered
        assert peer.health == []

        peer.send(registered=wire.Registered())
        await agent.handlers.got("registered")
        await scheduler.until(lambda: bool(peer.health))
        peer.send(action=translate.action_message(ACTION))
        assert await agent.handlers.got("action") == (ACTION,)
        assert agent.connection.registered
        assert agent.sample("stream_connected") == 1
