"""A scheduler for tests: a real grpc.aio server on loopback. A test scripts its behaviour by attributes.

The scheduler keeps the stored events of each attempt over reconnects and over its own restarts, until a test calls
`forget`. The list `breaches` records every breach of the contract: a gap in the event numbers, one number for two
different events, an event before the registration. Tests wait with `until` and never sleep.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
from grpc import aio

from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc
from tests.fakes.signs_nothing import SignsNothing
from tests.fakes.waiting import Changing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Key

OPTIONS = (
    ("grpc.http2.min_ping_interval_without_data_ms", 10),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)


@dataclass(eq=False)
class Peer:
    """One stream of an agent to the fake scheduler, with the messages that the scheduler has received."""

    authorization: str
    outgoing: asyncio.Queue[wire.SchedulerMessage | None] = field(default_factory=asyncio.Queue)
    register: wire.Register | None = None
    order: list[str | None] = field(default_factory=list)
    health: list[wire.Health] = field(default_factory=list)
    adopted: list[wire.SessionState] = field(default_factory=list)
    events: int = 0
    clean_end: bool = False
    ended: bool = False
    status: tuple[grpc.StatusCode, str] | None = None

    def send(self, **message: Any) -> None:
        """Send a message to the agent. The keyword is the kind of the message, such as `action`."""
        self.outgoing.put_nowait(wire.SchedulerMessage(**message))

    def end(self, status: grpc.StatusCode | None = None, details: str = "") -> None:
        """End the stream of the agent with this status. Without a status, end the stream with OK."""
        self.status = (status, details) if status is not None else None
        self.outgoing.put_nowait(None)


class FakeScheduler(Changing, SignsNothing):
    """The gRPC server. A test sets some attributes to script the server's behaviour.

    Other attributes record messages.
    """

    def __init__(self) -> None:
        # A test sets this attribute and those up to `credentials` to script the server's behaviour.
        self.interval = 60.0
        self.grace = 60.0
        self.refusal: wire.Refused | None = None
        self.denial: tuple[grpc.StatusCode, str] | None = None
        self.answers_registration = True
        self.answers_health = True
        self.acknowledges = True
        # Number of events per acknowledgement. If it is above 1, a new stream resumes after the last acknowledged
        # event.
        self.acknowledges_every = 1
        self.answers_sessions = True
        self.ends_with_agent = True
        self.ends_after_events: int | None = None
        self.reads = asyncio.Event()
        self.reads.set()
        self.breaks_upload_after: int | None = None
        self.receipt: wire.UploadReceipt | None = None
        # The answers to FetchInput. An event makes a call wait until it is set.
        self.inputs: list[wire.ArtifactChunk | asyncio.Event] = []
        self.credentials: grpc.ServerCredentials | None = None
        # This attribute and the following ones record what the server has received.
        self.peers: list[Peer] = []
        self.stored: dict[tuple[str, int], list[wire.Event]] = {}
        self.acknowledged: dict[tuple[str, int], int] = {}
        self.arrivals: list[wire.Event] = []
        self.uploads: list[list[wire.ArtifactChunk]] = []
        self.fetches: list[wire.FetchInputRequest] = []
        self.breaches: list[str] = []
        self.changed = asyncio.Condition()
        self.server: aio.Server | None = None
        self.port = 0

    # ---- the server

    async def start(self) -> None:
        """Listen for agents. If the scheduler was stopped before, listen on the same port again."""
        self.server = aio.server(options=OPTIONS)
        agent_pb2_grpc.add_SchedulerServicer_to_server(self, self.server)
        address = f"localhost:{self.port}"
        if self.credentials is None:
            self.port = self.server.add_insecure_port(address)
        else:
            self.port = self.server.add_secure_port(address, self.credentials)
        await self.server.start()

    async def stop(self) -> None:
        """Stop the server and break every stream. A test can start the server again with `start`."""
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def peer(self) -> Peer:
        """Return the newest stream on which an agent has registered."""
        return [peer for peer in self.peers if peer.register is not None][-1]

    def forget(self) -> None:
        """Delete the stored events, as in a state loss."""
        self.stored.clear()

    def describe(self) -> str:
        """Return each stream with its last health report, and the kinds of the stored events of each attempt.

        This text is for the message of a failed wait.
        """
        peers = [
            f"stream: registered {each.register is not None}, messages {each.order}, ended {each.ended},"
            f" health {str(each.health[-1:]).split()}"
            for each in self.peers
        ]
        stored = {key: [event.WhichOneof("event") for event in events] for key, events in self.stored.items()}
        return "\n".join([*peers, f"stored: {stored}", f"breaches: {self.breaches}"])

    async def connected(self, count: int = 1) -> Peer:
        """Wait until `count` streams have registered. Return the last of these streams."""
        await self.until(
            f"{count} streams are registered", lambda: sum(peer.register is not None for peer in self.peers) >= count
        )
        return self.peer

    def last_seq(self, key: Key) -> int:
        """Return the number of the last event that is stored of an attempt, or 0."""
        return len(self.stored.get(key.attempt_key, ()))

    def log_of(self, key: Key) -> bytes:
        """Return the log of an attempt, as the scheduler has stored it."""
        return b"".join(event.log.data for event in self.stored.get(key.attempt_key, ()))

    # ---- the gRPC call Connect

    async def Connect(  # noqa: N802 - the name is the contract's
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[wire.SchedulerMessage]:
        peer = Peer(dict(context.invocation_metadata()).get("authorization", ""))
        self.peers.append(peer)
        if self.denial is not None:
            await self.notify()
            await context.abort(*self.denial)
        reader = asyncio.create_task(self.read(peer, request_iterator), name="fake scheduler reader")
        try:
            while (message := await peer.outgoing.get()) is not None:
                yield message
            if peer.status is not None:
                await context.abort(*peer.status)
        finally:
            peer.ended = True
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await self.notify()

    async def read(self, peer: Peer, messages: AsyncIterator[wire.AgentMessage]) -> None:
        async for message in messages:
            await self.reads.wait()
            peer.order.append(message.WhichOneof("message"))
            match message.WhichOneof("message"):
                case "register":
                    self.register(peer, message.register)
                case "health":
                    peer.health.append(message.health)
                    if self.answers_health:
                        peer.send(ack=wire.Ack())
                case "event":
                    self.event(peer, message.event)
                case "adopted":
                    peer.adopted.append(message.adopted)
                    self.answer(peer, message.adopted)
            await self.notify()
        peer.clean_end = True
        if self.ends_with_agent:
            peer.end()
        await self.notify()

    def register(self, peer: Peer, register: wire.Register) -> None:
        if self.refusal is not None:
            peer.send(refused=self.refusal)
            peer.end()
            return
        peer.register = register
        if not self.answers_registration:
            return
        registered = wire.Registered(scheduler="fake")
        registered.health_interval.CopyFrom(translate.duration(self.interval))
        registered.resume_grace.CopyFrom(translate.duration(self.grace))
        peer.send(registered=registered)
        for state in register.sessions:
            self.answer(peer, state)

    def answer(self, peer: Peer, state: wire.SessionState) -> None:
        """Send the message Resume for a session, unless `answers_sessions` is false.

        The message names the last stored event.
        """
        if self.answers_sessions:
            place = (state.action_id, state.attempt)
            seq = len(self.stored.get(place, ()))
            if self.acknowledges_every > 1:
                seq = self.acknowledged.get(place, 0)
            peer.send(resume=wire.Resume(action_id=state.action_id, attempt=state.attempt, claim=state.claim, seq=seq))

    def event(self, peer: Peer, event: wire.Event) -> None:
        """Store and acknowledge an event of an agent. Record a breach if the event breaks the contract.

        For example, an event with the number of a stored event must be equal to that event.
        """
        if peer.register is None:
            self.breaches.append("an event before the registration")
        self.arrivals.append(event)
        peer.events += 1
        stored = self.stored.setdefault((event.action_id, event.attempt), [])
        if event.seq == len(stored) + 1:
            stored.append(event)
        elif event.seq > len(stored) + 1:
            self.breaches.append(f"{event.action_id}: {event.seq} came after {len(stored)}")
        elif stored[event.seq - 1] != event:
            self.breaches.append(f"{event.action_id}: {event.seq} stands for two events")
        due = len(stored) % self.acknowledges_every == 0 or event.HasField("finished")
        if self.acknowledges and due:
            self.acknowledged[event.action_id, event.attempt] = len(stored)
            peer.send(
                ack=wire.Ack(action_id=event.action_id, attempt=event.attempt, claim=event.claim, seq=len(stored))
            )
        if self.ends_after_events is not None and peer.events == self.ends_after_events:
            peer.end(grpc.StatusCode.UNAVAILABLE, "scripted")

    # ---- the gRPC calls FetchInput and UploadArtifacts

    async def FetchInput(  # noqa: N802 - the name is the contract's
        self,
        request: wire.FetchInputRequest,
        context: Any,
    ) -> AsyncIterator[wire.ArtifactChunk]:
        self.fetches.append(request)
        await self.notify()
        for each in self.inputs:
            if isinstance(each, asyncio.Event):
                await each.wait()
            else:
                yield each

    async def UploadArtifacts(  # noqa: N802 - the name is the contract's
        self, request_iterator: Any, context: Any
    ) -> wire.UploadReceipt:
        chunks: list[wire.ArtifactChunk] = []
        self.uploads.append(chunks)
        await self.notify()
        async for chunk in request_iterator:
            await self.reads.wait()
            chunks.append(chunk)
            await self.notify()
            if self.breaks_upload_after is not None and len(chunks) >= self.breaks_upload_after:
                await context.abort(grpc.StatusCode.INTERNAL, "scripted")
        if self.receipt is not None:
            return self.receipt
        end = chunks[-1].parts[-1].end
        return wire.UploadReceipt(files=end.files, bytes=end.bytes)


async def main() -> None:
    """Run a FakeScheduler as a process until the standard input ends. Print its port.

    A test can freeze this process.
    """
    scheduler = FakeScheduler()
    await scheduler.start()
    print(scheduler.port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await scheduler.stop()


if __name__ == "__main__":
    asyncio.run(main())
