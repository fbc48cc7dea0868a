"""A scheduler that keeps every slot full: a process that speaks the real protocol.

    python -m tests.bench.scripted.scheduler

The process prints its port. Each line of JSON on its standard input is a request, and the process answers with its
counters as a line of JSON. `{"give": "life=1", "count": 100}` queues actions (-1: without end), `{"stop": true}`
empties the queue, `{"forget": true}` clears the latencies. The scheduler acknowledges each event at once and stores
nothing.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from grpc import aio

from agent.domain.json import Object
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc
from tests.fakes.signs_nothing import SignsNothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Place = tuple[str, int, int]

INTERVAL = 10.0
GRACE = 60.0
QUIET = "quiet"
SECRETS = {"TOKEN": "bench-secret-value"}


class Peer:
    """One connected agent: its stream, its slots, and the actions that the agent has not accepted yet."""

    def __init__(self) -> None:
        self.acks: dict[Place, int] = {}
        self.outgoing: deque[wire.SchedulerMessage] = deque()
        self.wake = asyncio.Event()
        self.slots = 0
        self.running = 0
        self.ready = False
        self.unaccepted: set[str] = set()
        self.registered = 0.0
        self.finished = 0

    @property
    def room(self) -> int:
        """Return the number of actions that the scheduler may send to the agent now."""
        return self.slots - self.running - len(self.unaccepted) if self.ready else 0

    def send(self, **message: Any) -> None:
        """Send a message to the agent. The keyword is the kind of the message, such as `action`."""
        self.outgoing.append(wire.SchedulerMessage(**message))
        self.wake.set()

    def acknowledge(self, event: wire.Event) -> None:
        """Queue the acknowledgement of an event for the agent.

        This replaces an earlier acknowledgement of the same session that was not sent yet.
        """
        self.acks[event.action_id, event.attempt, event.claim] = event.seq
        self.wake.set()


class Scheduler(SignsNothing):
    """A gRPC server with a queue of actions, which it sends to its agents."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.queue: deque[tuple[Object, int]] = deque()
        self.given = 0
        self.events = self.log_bytes = self.lines = self.file_bytes = 0
        self.ends: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.last_failure = ""

    # ---- the gRPC service

    async def Connect(  # noqa: N802 - the name is the contract's
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[wire.SchedulerMessage]:
        peer = Peer()
        reader = asyncio.create_task(self.read(peer, request_iterator), name="reader")
        try:
            while not reader.done():
                peer.wake.clear()
                while peer.outgoing or peer.acks:
                    if peer.outgoing:
                        yield peer.outgoing.popleft()
                    else:
                        (action_id, attempt, claim), seq = peer.acks.popitem()
                        ack = wire.Ack(action_id=action_id, attempt=attempt, claim=claim, seq=seq)
                        yield wire.SchedulerMessage(ack=ack)
                await peer.wake.wait()
        finally:
            if peer in self.peers:
                self.peers.remove(peer)
            reader.cancel()

    async def read(self, peer: Peer, messages: AsyncIterator[wire.AgentMessage]) -> None:
        """Read the messages of an agent until its stream ends."""
        async for message in messages:
            match message.WhichOneof("message"):
                case "event":
                    self.event(peer, message.event)
                case "health":
                    self.health(peer, message.health)
                case "register":
                    self.register(peer, message.register)
        peer.wake.set()

    def register(self, peer: Peer, register: wire.Register) -> None:
        """Add an agent to the agents of this scheduler, and send the message Registered to the agent."""
        peer.slots, peer.registered = register.slots, time.time()
        self.peers.append(peer)
        registered = wire.Registered(scheduler="bench")
        registered.health_interval.CopyFrom(translate.duration(INTERVAL))
        registered.resume_grace.CopyFrom(translate.duration(GRACE))
        peer.send(registered=registered)

    def health(self, peer: Peer, health: wire.Health) -> None:
        """Record and acknowledge a health report, and send the agent actions for its free slots."""
        peer.ready = health.status == wire.Health.READY
        peer.slots, peer.running = health.slots, health.running
        peer.send(ack=wire.Ack())
        self.fill(peer)

    def event(self, peer: Peer, event: wire.Event) -> None:
        """Count an event of an agent, and acknowledge it."""
        self.events += 1
        peer.acknowledge(event)
        match event.WhichOneof("event"):
            case "log":
                self.log(event)
            case "accepted":
                peer.unaccepted.discard(event.action_id)
            case "rejected":
                self.ends["rejected"] += 1
                peer.unaccepted.discard(event.action_id)
            case "finished":
                self.ends["finished"] += 1
                peer.finished += 1
                if event.finished.result != wire.SUCCEEDED:
                    self.ends["failed"] += 1
                    self.last_failure = event.finished.message

    def log(self, event: wire.Event) -> None:
        """Count a piece of an action's log. If the action's id begins with QUIET, record the delay of each line.

        The lines of such actions contain the time at which the pod wrote them.
        """
        data = event.log.data
        self.log_bytes += len(data)
        if not event.action_id.startswith(QUIET):
            return
        now = time.time_ns()
        for each in data.split(b"\n"):
            if each.startswith(b"at "):
                self.lines += 1
                self.latencies.append((now - int(each.split(b" ", 2)[1])) / 1e9)

    async def FetchInput(  # noqa: N802 - the name is the contract's
        self,
        request: wire.FetchInputRequest,
        context: Any,
    ) -> AsyncIterator[wire.ArtifactChunk]:
        """Refuse the call, because no action of this scheduler has inputs."""
        raise AssertionError(f"{request.action_id} has no inputs")
        yield wire.ArtifactChunk()

    async def UploadArtifacts(  # noqa: N802 - the name is the contract's
        self, request_iterator: Any, context: Any
    ) -> wire.UploadReceipt:
        """Receive an upload of files and count its bytes."""
        last: wire.ArtifactChunk | None = None
        async for chunk in request_iterator:
            self.file_bytes += sum(len(part.data) for part in chunk.parts)
            last = chunk
        assert last is not None
        return wire.UploadReceipt(files=last.parts[-1].end.files, bytes=last.parts[-1].end.bytes)

    # ---- the queue

    def fill(self, peer: Peer) -> None:
        """Send queued actions to an agent until the agent has no free slot or the queue is empty."""
        while self.queue and peer.room > 0:
            order, count = self.queue.popleft()
            if count != 1:
                self.queue.appendleft((order, count - 1 if count > 0 else count))
            self.given += 1
            action_id = f"{order.get('name', 'bench')}-{self.given}"
            peer.unaccepted.add(action_id)
            action = wire.Action(action_id=action_id, attempt=1, claim=1, image="busybox:1", commands=[order["give"]])
            if not order.get("files"):
                action.artifacts.when = wire.ArtifactRules.NEVER
            if order.get("secrets"):
                action.secrets.update(SECRETS)
            peer.send(action=action)

    def obey(self, order: Object) -> None:
        """Execute a request of the benchmark, which is a line on the standard input."""
        if "give" in order:
            self.queue.append((order, order.get("count", 1)))
        if order.get("stop"):
            self.queue.clear()
        if order.get("forget"):
            self.latencies.clear()
        for peer in self.peers:
            self.fill(peer)

    def seen(self) -> Object:
        """Return the counters of this scheduler as they are now, for the benchmark. Latencies are in seconds."""
        ordered = sorted(self.latencies)
        return {
            "cpu": time.process_time(),
            "given": self.given,
            "events": self.events,
            "log_bytes": self.log_bytes,
            "file_bytes": self.file_bytes,
            "lines": self.lines,
            "ends": dict(self.ends),
            "last_failure": self.last_failure,
            "registered": [peer.registered for peer in self.peers],
            "ready": sum(peer.ready for peer in self.peers),
            "running": [peer.running for peer in self.peers],
            "finished": [peer.finished for peer in self.peers],
            "latency": {str(part): ordered[int(part * (len(ordered) - 1))] for part in (0.5, 0.99)} if ordered else {},
        }

    async def serve(self) -> None:
        server = aio.server(options=(("grpc.so_reuseport", 0), ("grpc.http2.min_ping_interval_without_data_ms", 1000)))
        agent_pb2_grpc.add_SchedulerServicer_to_server(self, server)
        port = server.add_insecure_port("localhost:0")
        await server.start()
        print(port, flush=True)
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            self.obey(json.loads(line))
            print(json.dumps(self.seen()), flush=True)
        await server.stop(None)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(Scheduler().serve())
