"""The agent's place in the scheduler's pool: one stream after another, for as long as the process lives.

`run` dials, registers and talks; when the stream breaks it dials again, for ever, with full jitter. Running sessions do
not notice: their events wait in the outbox. Each outage is said once in the log, and its end once. Only three things
end it: a cancellation, `close`, and a refusal that no waiting can cure.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import Refused, SchedulerError
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.stream.channel import Broken, Dialed, metadata
from agent.scheduler.stream.credential_reload import ROTATED, Rotation
from agent.scheduler.stream.inbox import Handlers, Receiver
from agent.scheduler.stream.stream import DEFAULT_GRACE, DEFAULT_INTERVAL, PROTOCOL_VERSION, Stream
from agent.scheduler.stream.upload import upload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.duration_pb2 import Duration

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.scheduler.stream.health import HealthReporter
    from agent.scheduler.stream.outbox import Outbox
    from agent.settings import AgentSection, SchedulerSettings
    from agent.telemetry.metrics import Metrics

__all__ = ["Backoff", "Connection", "Handlers", "Identity"]

FIRST_DELAY = 0.5
STABLE_AFTER = 10.0
CLOSE_TIMEOUT = 1.0
OUTAGES = frozenset({"closed", "unavailable", "silent"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is: `agent_id` is "<uid of the pod>.<nonce of this start>"."""

    agent_id: str
    version: str

    @classmethod
    def of(cls, uid: str, version: str) -> Identity:
        """Make the identity of this start; without a pod's uid a random one."""
        return cls(f"{uid or uuid.uuid4().hex}.{uuid.uuid4().hex[:8]}", version)


class Backoff:
    """How long to wait before the next try, in seconds: full jitter under a doubling bound."""

    def __init__(self, longest: float) -> None:
        self.longest = longest
        self.tries = 0
        self.random = random.SystemRandom()

    def reset(self) -> None:
        """Begin with the shortest bound again, after a stream that was stable."""
        self.tries = 0

    def after(self, error: SchedulerError) -> float:
        """Return the wait after a stream that ended with this error."""
        self.tries += 1
        if isinstance(error, Refused) and error.retry_after is not None:
            return error.retry_after
        if isinstance(error, Broken) and error.kind == "unauthenticated":
            return self.longest * self.random.uniform(0.8, 1.0)
        return self.random.uniform(0.0, min(self.longest, FIRST_DELAY * 2.0 ** min(self.tries - 1, 30)))


class Connection:
    """Keeps this agent registered. `registered` says whether it is now."""

    def __init__(
        self,
        settings: SchedulerSettings,
        agent: AgentSection,
        identity: Identity,
        outbox: Outbox,
        handlers: Handlers,
        metrics: Metrics,
        health: HealthReporter,
    ) -> None:
        self.settings = settings
        self.agent = agent
        self.identity = identity
        self.outbox = outbox
        self.metrics = metrics
        self.health = health
        self.receiver = Receiver(outbox, handlers, metrics)
        self.backoff = Backoff(settings.reconnect_max)
        self.stream: Stream | None = None
        self.dialed: Dialed | None = None
        self.connected = asyncio.Event()
        self.closing = asyncio.Event()
        self.ended = asyncio.Event()
        self.uploads: set[asyncio.Timeout] = set()
        self.deadline: asyncio.Timeout | None = None
        self.said: set[str] = set()
        outbox.uploader = self.upload

    @property
    def registered(self) -> bool:
        """Whether the scheduler has this agent in its pool."""
        return self.connected.is_set()

    async def run(self) -> None:
        """Stay registered; return after `close`.

        Raises:
            Refused: only another version of this agent helps.
        """
        self.ended.clear()
        try:
            async with asyncio.timeout(None) as self.deadline:
                await self.stay()
        except TimeoutError:
            if not self.closing.is_set():
                raise
            log.warning("the scheduler did not end the stream in time")
        finally:
            self.deadline = None
            self.ended.set()

    async def close(self) -> None:
        """End the stream cleanly, so that the scheduler knows that this agent has left; takes a second at most."""
        self.closing.set()
        if self.deadline is None or self.deadline.expired():
            return
        self.deadline.reschedule(asyncio.get_running_loop().time() + CLOSE_TIMEOUT)
        if self.stream is not None:
            self.stream.close()
        await self.ended.wait()

    async def upload(self, key: Key, parts: AsyncIterator[FilePart]) -> None:
        """Send files over the current connection, waiting for one; the caller sets the deadline.

        Raises:
            SchedulerError: it broke.
            Exception: whatever `parts` raises.
        """
        while self.dialed is None or not self.registered:
            await self.connected.wait()
        stub = self.dialed.bulk_stub()
        try:
            async with asyncio.timeout(None) as end:
                self.uploads.add(end)
                receipt = await upload(stub, key, self.identity.agent_id, parts, metadata(self.settings))
        except TimeoutError as error:
            if not end.expired():
                raise
            raise SchedulerError("the connection to the scheduler ended while files were sent") from error
        finally:
            self.uploads.discard(end)
        self.metrics.artifact_files.inc(receipt.files)
        self.metrics.artifact_bytes.inc(receipt.bytes)

    # ---- inside

    async def stay(self) -> None:
        """Open one stream after another."""
        while not self.closing.is_set():
            try:
                await self.connect()
            except SchedulerError as error:
                kind = error.kind if isinstance(error, Broken) else "refused"
                self.metrics.stream_reconnects.labels(kind).inc()
                if isinstance(error, Refused) and error.permanent:
                    raise
                if kind == ROTATED:
                    log.info("connecting to the scheduler anew", reason=str(error))
                elif not self.closing.is_set():
                    self.say_lost(kind, error)
                    await self.pause(self.backoff.after(error))

    async def connect(self) -> None:
        """Open one stream and talk until it ends.

        Raises:
            SchedulerError: always, saying why it ended.
        """
        rotation = Rotation(self.settings)
        self.dialed = Dialed(self.settings)
        since = time.monotonic()
        try:
            stream = Stream(self.settings, self.dialed.connect(), self.outbox, self.health, self.metrics)
            self.outbox.reset()
            registered = await stream.register(self.register_message())
            since = time.monotonic()
            interval = self.begin(stream, registered)
            await stream.run(self.receiver, interval, rotation)
        finally:
            if self.registered and time.monotonic() - since >= STABLE_AFTER:
                self.backoff.reset()
            self.stream = None
            self.connected.clear()
            self.metrics.stream_connected.set(0)
            self.end_uploads()
            dialed, self.dialed = self.dialed, None
            await dialed.close()

    def end_uploads(self) -> None:
        """End what goes over a connection that is about to be closed.

        grpc would end it with a `CancelledError` that nobody asked for, or (1.85.1) not at all: a write that waits for
        its call to begin waits for ever once its channel is closed.
        """
        now = asyncio.get_running_loop().time()
        for end in self.uploads:
            if not end.expired():
                end.reschedule(now)

    def begin(self, stream: Stream, registered: wire.Registered) -> float:
        """Take note of a registration; return the interval of health in seconds."""
        interval = given(registered.health_interval, DEFAULT_INTERVAL)
        grace = given(registered.resume_grace, DEFAULT_GRACE)
        self.stream = stream
        if self.closing.is_set():
            stream.close()
        self.connected.set()
        self.metrics.stream_connected.set(1)
        self.said.clear()
        log.info(
            "registered with the scheduler",
            address=self.settings.address,
            scheduler=registered.scheduler[:100],
            agent=self.identity.agent_id,
            health_interval=interval,
        )
        self.receiver.handlers.registered(interval, grace)
        return interval

    def register_message(self) -> wire.Register:
        """Say who connects and what it holds."""
        return wire.Register(
            agent_id=self.identity.agent_id,
            protocol_version=PROTOCOL_VERSION,
            agent_version=self.identity.version,
            pool=self.agent.pool,
            slots=self.agent.slots,
            labels=self.agent.labels,
            sessions=[translate.session_state_message(state) for state in self.outbox.sessions()],
        )

    def say_lost(self, kind: str, error: SchedulerError) -> None:
        """Say an outage once, and once more when it turns out to be one that only a person can end."""
        reason = "outage" if kind in OUTAGES else kind
        if reason in self.said:
            return
        self.said.add(reason)
        log.warning(f"cannot reach the scheduler at {self.settings.address}", reason=str(error), kind=kind)

    async def pause(self, delay: float) -> None:
        """Wait before the next try, unless this agent leaves."""
        try:
            async with asyncio.timeout(delay):
                await self.closing.wait()
        except TimeoutError:
            return


def given(duration: Duration, default: float) -> float:
    """Return a duration in seconds, the default when it is unset or none."""
    value = translate.seconds(duration)
    return value if value > 0 else default
