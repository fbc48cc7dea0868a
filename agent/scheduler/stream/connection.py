"""The agent's place in the scheduler's pool: one registered stream at a time, for as long as the process lives.

`run` opens a channel, registers and exchanges messages. When the stream breaks, the reconnect loop opens the next one.
Running sessions do not notice, because their events wait in the outbox. Only three things end `run`: a cancellation,
`close`, and a permanent refusal by the scheduler.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import structlog

from agent.domain.errors import SchedulerError
from agent.domain.session_state import Feature
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.reconnect import Reconnector
from agent.scheduler.stream import credential_reload
from agent.scheduler.stream.channel import StreamChannels, call_metadata
from agent.scheduler.stream.credential_reload import CredentialReload
from agent.scheduler.stream.fetch import fetch_call, parts_of, receive_chunk
from agent.scheduler.stream.inbox import Inbox
from agent.scheduler.stream.stream import DEFAULT_GRACE, DEFAULT_INTERVAL, PROTOCOL_VERSION, Stream
from agent.scheduler.stream.upload import upload

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from google.protobuf.duration_pb2 import Duration

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.protocol.wire.agent_pb2_grpc import SchedulerAsyncStub
    from agent.scheduler.stream.health import HealthReporter
    from agent.scheduler.stream.inbox import Handlers
    from agent.scheduler.stream.outbox import Outbox
    from agent.settings import AgentSection, SchedulerSettings
    from agent.telemetry.metrics import Metrics

    FileCall = Callable[[SchedulerAsyncStub, tuple[tuple[str, str], ...]], Awaitable["T"]]

T = TypeVar("T")

# Seconds until `close` stops waiting for the scheduler to end its side of the stream.
CLOSE_TIMEOUT = 1.0
# Seconds until a small call about files fails.
REQUEST_SECONDS = 60.0

log = structlog.get_logger(__name__)

# Bounds in seconds for the times that a scheduler chooses. With a shorter time, the agent would send too many messages.
# With a longer time, the agent would perhaps never send a message again.
SHORTEST_WAIT, LONGEST_WAIT = 0.01, 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What the scheduler knows of this process. `agent_id` is "<uid of the pod>.<nonce of this start>"."""

    agent_id: str
    version: str
    features: tuple[Feature, ...] = ()
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, uid: str, version: str, features: tuple[Feature, ...] = (), classes: tuple[str, ...] = ()) -> Identity:
        """Return a new identity. If `uid`, the uid of the agent's pod, is empty, the first part of the id is random."""
        return cls(f"{uid or uuid.uuid4().hex}.{uuid.uuid4().hex[:8]}", version, features, classes)


class Connection:
    """Keeps this agent registered over the stream protocol. The application owns one, for the life of the process."""

    def __init__(
        self,
        settings: SchedulerSettings,
        agent: AgentSection,
        identity: Identity,
        outbox: Outbox,
        handlers: Handlers,
        metrics: Metrics,
        health: HealthReporter,
        reload_timings: credential_reload.Timings = credential_reload.DEFAULT_TIMINGS,
    ) -> None:
        self.settings = settings
        self.agent = agent
        self.identity = identity
        self.outbox = outbox
        self.metrics = metrics
        self.health = health
        self.reload_timings = reload_timings
        self.inbox = Inbox(outbox, handlers, metrics)
        self.reconnector = Reconnector(settings, metrics, self.connect)
        self.stream: Stream | None = None
        self.channels: StreamChannels | None = None
        self.finished = asyncio.Event()
        self.uploads: set[asyncio.Timeout] = set()
        self.deadline: asyncio.Timeout | None = None
        outbox.uploader = self.upload
        outbox.fetcher = self.fetch

    @property
    def registered(self) -> bool:
        """Whether the scheduler has this agent in its pool now."""
        return self.reconnector.connected.is_set()

    async def run(self) -> None:
        """Stay registered until `close`.

        Raises:
            Refused: the refusal is permanent. Only another version of this agent helps.
        """
        self.finished.clear()
        try:
            async with asyncio.timeout(None) as self.deadline:
                await self.reconnector.run()
        except TimeoutError:
            if not self.reconnector.closing.is_set():
                raise
            log.warning("the scheduler did not end the stream in time")
        finally:
            self.deadline = None
            self.finished.set()

    async def close(self) -> None:
        """End the stream cleanly, so that the scheduler knows that this agent has left. Takes a second at most."""
        self.reconnector.close()
        if self.deadline is None or self.deadline.expired():
            return
        self.deadline.reschedule(asyncio.get_running_loop().time() + CLOSE_TIMEOUT)
        if self.stream is not None:
            self.stream.close()
        await self.finished.wait()

    async def upload(self, key: Key, parts: AsyncIterator[FilePart]) -> None:
        """Wait for a connection and send files over it. The caller sets the deadline.

        Raises:
            SchedulerError: the upload broke.
            Exception: whatever `parts` raises.
        """
        receipt = await self.request(
            lambda stub, metadata: upload(stub, key, self.identity.agent_id, parts, metadata), None
        )
        self.metrics.artifact_files.inc(receipt.files)
        self.metrics.artifact_bytes.inc(receipt.bytes)

    async def request(self, call: FileCall[T], seconds: float | None = REQUEST_SECONDS) -> T:
        """Wait for a connection and make a call about files over it, within `seconds`. Return its answer.

        Raises:
            SchedulerError: the connection ended, or no answer came in time.
            Exception: whatever `call` raises.
        """
        while self.channels is None or not self.registered:
            await self.reconnector.connected.wait()
        channels = self.channels
        try:
            async with asyncio.timeout(seconds) as end:
                self.uploads.add(end)
                return await call(channels.upload_stub(), call_metadata(self.settings))
        except TimeoutError as error:
            if not end.expired():
                raise
            late = seconds is not None and self.channels is channels
            what = "the scheduler did not answer in time" if late else "the connection to the scheduler ended"
            raise SchedulerError(f"{what} during a call about files") from error
        finally:
            self.uploads.discard(end)

    async def fetch(self, key: Key, number: int) -> AsyncGenerator[FilePart, None]:
        """Wait for a connection and yield the parts of an input's files. The caller sets the deadline.

        Raises:
            InputMissing: the scheduler no longer stores a file.
            SchedulerError: the call broke.
        """
        while self.channels is None or not self.registered:
            await self.reconnector.connected.wait()
        channels = self.channels
        call = fetch_call(channels.upload_stub(), key, self.identity.agent_id, number, call_metadata(self.settings))

        async def next_chunk() -> wire.ArtifactChunk | None:
            if self.channels is not channels:
                raise SchedulerError("the connection to the scheduler ended while files were received")
            try:
                async with asyncio.timeout(None) as end:
                    self.uploads.add(end)
                    return await receive_chunk(call)
            except TimeoutError as error:
                if not end.expired():
                    raise
                raise SchedulerError("the connection to the scheduler ended while files were received") from error
            finally:
                self.uploads.discard(end)

        try:
            async with aclosing(parts_of(next_chunk)) as parts:
                async for part in parts:
                    yield part
        finally:
            call.cancel()

    # ---- internal methods

    async def connect(self) -> None:
        """Open one stream, register and exchange messages until the stream ends.

        Raises:
            SchedulerError: always, with the reason of the end.
        """
        reload = CredentialReload(self.settings, self.reload_timings)
        self.channels = StreamChannels(self.settings)
        try:
            stream = Stream(self.settings, self.channels.connect(), self.outbox, self.health, self.metrics)
            self.outbox.reset()
            registered = await stream.register(self.register_message())
            await stream.run(self.inbox, self.on_registered(stream, registered), reload)
        finally:
            self.reconnector.on_disconnected()
            self.stream = None
            self.end_uploads()
            channels, self.channels = self.channels, None
            await channels.close()

    def end_uploads(self) -> None:
        """End the uploads over a connection that is about to be closed.

        If the connection closed first, gRPC would raise a `CancelledError` in these uploads, although the agent
        cancelled nothing. With grpcio 1.85.1, a write that waits for its call to start would even wait for ever.
        """
        now = asyncio.get_running_loop().time()
        for end in self.uploads:
            if not end.expired():
                end.reschedule(now)

    def on_registered(self, stream: Stream, registered: wire.Registered) -> float:
        """Handle an acknowledged registration and return the seconds between two health messages."""
        interval = seconds_or(registered.health_interval, DEFAULT_INTERVAL)
        grace = seconds_or(registered.resume_grace, DEFAULT_GRACE)
        self.stream = stream
        features = translate.features(registered.features)
        self.outbox.stores_references = Feature.OBJECTS in features
        self.outbox.stores_packs = Feature.OBJECT_PACKS in features
        if self.reconnector.closing.is_set():
            stream.close()
        self.reconnector.on_connected()
        log.info(
            "registered with the scheduler",
            address=self.settings.address,
            scheduler=registered.scheduler[:100],
            features=sorted(each.value for each in features),
            agent=self.identity.agent_id,
            health_interval=interval,
        )
        self.inbox.handlers.registered(interval, grace)
        return interval

    def register_message(self) -> wire.Register:
        """Return the registration, with every session that this agent holds."""
        return wire.Register(
            agent_id=self.identity.agent_id,
            protocol_version=PROTOCOL_VERSION,
            agent_version=self.identity.version,
            pool=self.agent.pool,
            slots=self.agent.slots,
            labels=self.agent.labels,
            sessions=[translate.session_state_message(state) for state in self.outbox.session_states()],
            features=[each.value for each in self.identity.features],
            classes=self.identity.classes,
        )


def seconds_or(duration: Duration, default: float) -> float:
    """Return a duration in seconds, at most `LONGEST_WAIT`. Return the default if it is unset, zero or negative."""
    value = min(translate.seconds(duration), LONGEST_WAIT)
    return max(value, SHORTEST_WAIT) if value > 0 else default
