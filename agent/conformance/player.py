"""An agent that the tool plays: one stream to the scheduler, and what arrives on it.

A `Player` lives as long as one scenario and can open one stream after another. It checks each message of the scheduler
when the message arrives, so a breach is found whatever the tool waits for at that moment.
"""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import grpc

from agent.aio import cancel_and_wait
from agent.conformance import points
from agent.conformance.action_fields import action_problem, feature_problem
from agent.domain.errors import AgentError
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent.conformance.points import Point

PROTOCOL_VERSION = 1
# A name that no version has. A scheduler ignores it.
UNKNOWN_FEATURE = "conformance-unknown"
# Number of messages that the tool keeps of one stream.
MAX_MESSAGES = 10_000
# Seconds between two Health messages if the scheduler names no interval, and bounds of the named interval.
DEFAULT_INTERVAL, SHORTEST_INTERVAL, LONGEST_INTERVAL = 10.0, 0.05, 3600.0

SessionKey = tuple[str, int, int]


class Breach(AgentError):
    """The scheduler broke a point of the contract. Without `point`, it is the point that is being checked."""

    def __init__(self, message: str, point: Point | None = None) -> None:
        super().__init__(message)
        self.point = point


class Target(Protocol):
    """The scheduler under test."""

    @property
    def address(self) -> str:
        """Host and port."""

    def channel(self) -> grpc.aio.Channel:
        """Return a new channel."""

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of every call."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the tool works. Times are in seconds.

    `timeout`: time that the scheduler has for each answer. `quiet`: time in which a forbidden message would arrive.
    `wait`: time until a queued action must arrive. `submit` and `cancel`: shell commands that queue actions and cancel
    one.
    """

    pool: str = "default"
    timeout: float = 10.0
    quiet: float = 0.5
    wait: float = 120.0
    submit: str = ""
    cancel: str = ""


def key_of(message: wire.Action | wire.Ack | wire.Resume | wire.Discard | wire.Event) -> SessionKey:
    return message.action_id, message.attempt, message.claim


def named(key: SessionKey) -> str:
    return f"attempt {key[1]}, claim {key[2]} of action {key[0]!r}"


@dataclass(eq=False)
class Player:
    """One played agent. `pod` is the part of its id that a restart keeps."""

    target: Target
    options: Options
    pod: str = field(default_factory=lambda: uuid.uuid4().hex)
    slots: int = 1
    # The numbers of each session: the highest that was sent, and the highest that was acknowledged.
    sent: dict[SessionKey, int] = field(default_factory=dict)
    acked: dict[SessionKey, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.agent_id = f"{self.pod}.{uuid.uuid4().hex[:8]}"
        self.channel: grpc.aio.Channel | None = None
        self.reset()

    def reset(self) -> None:
        """Drop everything that belongs to one stream."""
        self.messages: list[wire.SchedulerMessage] = []
        self.breaches: list[Breach] = []
        self.acks_of_health = 0
        self.acks_of_events = 0
        self.actions: list[wire.Action] = []
        self.taken = 0
        # Number of actions that have come since the last Health was sent.
        self.since_health = 0
        self.health_sent: wire.Health | None = None
        self.health_acked: wire.Health | None = None
        self.registered: wire.Registered | None = None
        self.end: str | None = None
        self.code: grpc.StatusCode | None = None
        self.changed = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    # ---- the stream

    async def open(self, metadata: tuple[tuple[str, str], ...] | None = None) -> None:
        """Open a stream without a registration. Close the stream that is open."""
        await self.close()
        self.reset()
        self.channel = self.target.channel()
        stub = agent_pb2_grpc.SchedulerStub(self.channel)
        self.call = stub.Connect(metadata=self.target.metadata() if metadata is None else metadata)
        self.tasks = [asyncio.create_task(self.read(), name="conformance reader")]

    async def register(
        self, sessions: Sequence[wire.SessionState] = (), version: int = PROTOCOL_VERSION
    ) -> wire.Registered:
        """Open a stream and register.

        Raises:
            Breach: the scheduler does not answer with Registered.
        """
        await self.open()
        message = wire.Register(
            agent_id=self.agent_id,
            protocol_version=version,
            agent_version="conformance",
            pool=self.options.pool,
            slots=self.slots,
            sessions=sessions,
            features=[UNKNOWN_FEATURE],
        )
        await self.write(wire.AgentMessage(register=message))
        await self.until(lambda: bool(self.messages), "an answer to Register", points.ANSWER)
        first = self.messages[0]
        kind = first.WhichOneof("message")
        if kind == "refused":
            why = wire.Refused.Why.Name(first.refused.why)
            raise Breach(f"the scheduler refused the agent: {why} {first.refused.message}".rstrip(), points.ANSWER)
        if kind != "registered":
            raise Breach(f"Register was answered with {kind or 'an unknown message'}", points.ANSWER)
        self.registered = first.registered
        self.tasks.append(asyncio.create_task(self.report(), name="conformance health"))
        return first.registered

    async def close(self) -> None:
        """Break the stream, as an agent does that was killed. Safe to repeat."""
        tasks, self.tasks = self.tasks, []
        await cancel_and_wait(*tasks, ignore_errors=True)
        channel, self.channel = self.channel, None
        if channel is not None:
            self.call.cancel()
            await channel.close()

    async def leave(self) -> None:
        """End the agent's side of the stream, as an agent does that has drained."""
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self.call.done_writing()

    async def read(self) -> None:
        """Note each message until the stream ends."""
        try:
            async for message in self.call:
                self.note(message)
                self.changed.set()
            code, details = await self.call.code(), await self.call.details()
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        self.code, self.end = code, f"{code.name} {details or ''}".strip()
        self.changed.set()

    async def report(self) -> None:
        """Repeat the last Health at the interval that the scheduler named."""
        interval = DEFAULT_INTERVAL
        if self.registered is not None and (named_interval := translate.seconds(self.registered.health_interval)) > 0:
            interval = min(max(named_interval, SHORTEST_INTERVAL), LONGEST_INTERVAL)
        while True:
            await asyncio.sleep(interval)
            if self.health_sent is not None:
                self.since_health = 0
                await self.write(wire.AgentMessage(health=self.health_sent))

    async def write(self, message: wire.AgentMessage) -> None:
        """Send a message. If the stream has ended, the next wait reports it."""
        with suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            async with asyncio.timeout(self.options.timeout):
                await self.call.write(message)

    async def until(
        self, condition: Callable[[], bool], what: str, point: Point | None = None, seconds: float = 0
    ) -> None:
        """Wait until a condition is true. Without `seconds`, the limit is the time for an answer.

        Raises:
            Breach: the scheduler broke a point, ended the stream, or was silent for too long. `what` names the wait.
        """
        seconds = seconds or self.options.timeout
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self.changed.clear()
                    if self.breaches:
                        raise self.breaches.pop(0)
                    if condition():
                        return
                    if self.end is not None:
                        raise Breach(f"the stream ended with {self.end} in place of {what}", point)
                    await self.changed.wait()
        except TimeoutError:
            raise Breach(f"{seconds:g} s passed without {what}", point) from None

    async def pause(self) -> None:
        """Wait for messages that must not come.

        Raises:
            Breach: the scheduler broke a point.
        """
        await asyncio.sleep(self.options.quiet)
        if self.breaches:
            raise self.breaches.pop(0)

    # ---- messages of the scheduler

    def note(self, message: wire.SchedulerMessage) -> None:
        """Keep a message and check it."""
        if len(self.messages) >= MAX_MESSAGES:
            return
        self.messages.append(message)
        match message.WhichOneof("message"):
            case "ack" if not message.ack.action_id:
                self.acks_of_health += 1
                self.health_acked = self.health_sent
            case "ack":
                self.check_ack(message.ack)
            case "action":
                self.check_action(message.action)

    def check_ack(self, ack: wire.Ack) -> None:
        key = key_of(ack)
        self.acks_of_events += 1
        if key not in self.sent:
            known = ", ".join(named(each) for each in self.sent) or "no session"
            self.breach(points.ACK_KEY, f"an Ack came for {named(key)}, the agent sent events of {known}")
        elif ack.seq > self.sent[key]:
            text = f"event {ack.seq} of {named(key)} was acknowledged, the agent sent {self.sent[key]}"
            self.breach(points.ACK_SEQ, text)
        else:
            self.acked[key] = max(ack.seq, self.acked.get(key, 0))

    def check_action(self, action: wire.Action) -> None:
        """Check the fields of an action and whether the agent could take it. A repeated action breaks no point."""
        if key_of(action) in self.sent:
            return
        self.sent[key_of(action)] = 0
        self.actions.append(action)
        if problem := action_problem(action):
            self.breach(points.FIELDS, problem)
        if problem := feature_problem(action):
            self.breach(points.FEATURES, problem)
        # A Health message and an action may cross, so the Health before the last one counts too.
        states = [each for each in (self.health_sent, self.health_acked) if each is not None]
        ready = [each for each in states if each.status == wire.Health.READY]
        if not ready:
            what = wire.Health.Status.Name(states[0].status) if states else "not reported"
            point = points.DRAINING if states and states[0].status == wire.Health.DRAINING else points.NOT_READY
            self.breach(point, f"action {action.action_id!r} came while the agent's Health was {what}")
        elif all(each.running + self.since_health >= each.slots for each in ready):
            used = ready[0].running + self.since_health
            text = f"action {action.action_id!r} came while {used} of {self.slots} slots were in use"
            self.breach(points.SLOTS, text)
        self.since_health += 1

    def breach(self, point: Point, text: str) -> None:
        self.breaches.append(Breach(text, point))

    # ---- messages of the agent

    async def health(self, status: wire.Health.Status.ValueType, running: int = 0, *, wait: bool = True) -> None:
        """Report the agent's health. With `wait`, wait for the answer.

        Raises:
            Breach: no answer came.
        """
        before = self.acks_of_health
        self.since_health = 0
        self.health_sent = wire.Health(status=status, slots=self.slots, running=running, cluster_reachable=True)
        await self.write(wire.AgentMessage(health=self.health_sent))
        if wait:
            await self.until(lambda: self.acks_of_health > before, "an Ack of Health", points.HEALTH)

    async def send(self, event: wire.Event) -> None:
        """Send an event without waiting for its Ack."""
        key = key_of(event)
        self.sent[key] = max(event.seq, self.sent.get(key, 0))
        await self.write(wire.AgentMessage(event=event))

    async def until_acked(self, key: SessionKey, seq: int, point: Point | None = None) -> None:
        """Wait until the events of a session are acknowledged up to a number.

        Raises:
            Breach: no Ack came, which breaks `point`.
        """
        await self.until(lambda: self.acked.get(key, 0) >= seq, f"an Ack of event {seq} of {named(key)}", point)

    def received(self, kind: str, key: SessionKey) -> list[wire.SchedulerMessage]:
        """Return the messages of a kind (resume, discard) about a session."""
        of_kind = [each for each in self.messages if each.WhichOneof("message") == kind]
        return [each for each in of_kind if key_of(getattr(each, kind)) == key]

    def cancels(self) -> list[wire.Cancel]:
        """Return the cancellations that have come over this stream."""
        return [each.cancel for each in self.messages if each.WhichOneof("message") == "cancel"]

    async def next_action(self) -> wire.Action:
        """Wait for an action that this method has not returned before, and return it.

        Raises:
            Breach: none came in time.
        """
        await self.until(lambda: len(self.actions) > self.taken, "an action", points.SENT, self.options.wait)
        self.taken += 1
        return self.actions[self.taken - 1]
