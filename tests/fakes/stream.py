"""The agent's end of the stream for tests: a real connection, and handlers that record their calls."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from agent.domain.actions import Action, Cancel, Key
from agent.domain.session_state import Feature, Health, Readiness, Resume
from agent.scheduler.stream.connection import Connection, Identity
from agent.scheduler.stream.health import HealthReporter
from agent.scheduler.stream.outbox import Outbox
from agent.settings import AgentSection, SchedulerSettings, Tls
from agent.telemetry.metrics import Metrics
from tests.fakes.waiting import poll_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.domain.errors import ActionFailed
    from tests.fakes.scheduler import FakeScheduler

DEADLINE = 30.0


class Recorder:
    """Handlers of the scheduler's messages to an agent. Each handler records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.changed = asyncio.Event()
        self.on_action: Callable[[Action], None] = lambda _: None

    def note(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, arguments))
        self.changed.set()

    async def got(self, name: str, count: int = 1) -> tuple[Any, ...]:
        """Wait until the handler `name` was called `count` times. Return the arguments of the last call."""
        while len(calls := [arguments for kind, arguments in self.calls if kind == name]) < count:
            self.changed.clear()
            await self.changed.wait()
        return calls[-1]

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
    """The agent's end of the stream, connected to a fake scheduler."""

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
        self.identity = Identity.of("pod-uid", "1.2.3", (Feature.SERVICES,))
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

    @property
    def failures(self) -> int:
        """Return the number of streams that have ended or never began."""
        samples = (
            sample
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "sealci_agent_stream_reconnects_total"
        )
        return int(sum(sample.value for sample in samples))

    async def until_handled(self, kind: str, count: int = 1) -> None:
        """Wait until the agent has handled `count` messages of the kind `kind`."""
        await poll_until(
            f"{count} messages of the kind {kind}",
            lambda: self.sample("stream_messages_total", direction="received", type=kind) >= count,
        )

    async def until_failed(self, count: int) -> None:
        """Wait until `count` streams have ended. After each end, the agent pauses before it opens the next stream."""
        await poll_until(f"{count} streams have ended", lambda: self.failures >= count)

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
        async with asyncio.timeout(DEADLINE):
            yield made
        assert scheduler.breaches == []
    finally:
        await made.stop()
        await scheduler.stop()
