"""A minimal scheduler that sends actions and records when events arrive, and the agents that connect to it.

The server runs in the benchmark's process, as long as one experiment. The agents are processes of their own, as in a
cluster. The server acknowledges each event at once and stores nothing, so that only the agent is measured. An
experiment can follow each single action. The other scheduler of the benchmark, scripted/scheduler.py, keeps all slots
full instead.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from grpc import aio

from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc
from tests.bench import machine
from tests.e2e import kube
from tests.fakes.signs_nothing import SignsNothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

OPTIONS = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 << 20))


@dataclass(eq=False)
class Given:
    """One action that was sent to an agent, with the arrival of its events.

    Times are seconds of `time.time`. A time is 0 until its event has arrived.
    """

    action: wire.Action
    given_at: float = 0.0
    accepted_at: float = 0.0
    finished_at: float = 0.0
    stages: dict[int, float] = field(default_factory=dict)
    outcome: wire.Outcome | None = None
    first_log_at: float = 0.0
    last_log_at: float = 0.0
    log_bytes: int = 0
    tail: bytes = b""
    refused: str = ""
    on_log: Callable[[bytes, float], None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[Given], object], timeout: float = 120) -> Given:
        """Wait until `condition` is true for this action, and return the action.

        Fail if the agent rejects the action.
        """
        async with asyncio.timeout(timeout):
            while not condition(self):
                assert not self.refused, self.refused
                self.changed.clear()
                await self.changed.wait()
        return self

    async def finished(self, timeout: float = 300) -> Given:
        """Wait for the outcome of the action, and return the action. Fail if the outcome is not a success."""
        await self.until(lambda each: each.outcome is not None, timeout)
        assert self.outcome is not None
        assert self.outcome.result == wire.SUCCEEDED, self.outcome
        return self

    def take(self, event: wire.Event, now: float) -> None:
        """Record an event of the action. `now` is the time at which the event arrived."""
        match event.WhichOneof("event"):
            case "accepted":
                self.accepted_at = now
            case "stage":
                self.stages[event.stage.stage] = now
            case "log":
                self.log_bytes += len(event.log.data)
                self.first_log_at = self.first_log_at or now
                self.last_log_at = now
                self.tail = (self.tail + event.log.data)[-200:]
                if self.on_log is not None:
                    self.on_log(event.log.data, now)
            case "finished":
                self.finished_at, self.outcome = now, event.finished
            case "rejected":
                self.refused = f"an agent rejected an action: {event.rejected}"
        self.changed.set()


@dataclass(eq=False)
class Stream:
    """The stream of one agent, with the content of the agent's last health report."""

    outgoing: asyncio.Queue[wire.SchedulerMessage] = field(default_factory=asyncio.Queue)
    running: int = 0
    ready: bool = False
    registered_at: float = 0.0


class MinimalScheduler(SignsNothing):
    """A gRPC server for agents.

    It holds their streams, the sent actions, and the agent processes that it has started.
    """

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self.folder = folder
        self.given: dict[str, Given] = {}
        self.streams: list[Stream] = []
        self.agents: list[Agent] = []
        self.uploaded = 0
        self.numbers = itertools.count()
        self.changed = asyncio.Condition()
        self.address = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[MinimalScheduler]:
        """Serve agents until the block ends. Then stop every agent and the server."""
        server = aio.server(options=OPTIONS)
        agent_pb2_grpc.add_SchedulerServicer_to_server(self, server)
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        try:
            yield self
        finally:
            for agent in self.agents:
                await agent.stop()
            await server.stop(None)

    async def agent(self, **settings: Any) -> Agent:
        """Start an agent process with these settings, and wait until it is ready."""
        count = len(self.streams)
        agent = Agent(self, len(self.agents), settings)
        self.agents.append(agent)
        await agent.start()
        try:
            await self.until(lambda: len(self.streams) > count and self.streams[-1].ready, 30)
        except TimeoutError:
            raise AssertionError(f"an agent did not become ready: {agent.log.read_text()}") from None
        return agent

    def give(self, image: str, *commands: str, stream: int = -1, **fields: Any) -> Given:
        """Send an action to an agent, by default to the agent that registered last.

        Return the Given, which records the events of the action.
        """
        name = f"bench/{os.getpid()}/{next(self.numbers)}"
        fields.setdefault("artifacts", wire.ArtifactRules(when=wire.ArtifactRules.NEVER))
        action = wire.Action(action_id=name, attempt=1, claim=1, name="bench", image=image, commands=commands, **fields)
        given = self.given[name] = Given(action)
        given.given_at = time.time()
        self.streams[stream].outgoing.put_nowait(wire.SchedulerMessage(action=action))
        return given

    async def idle(self, timeout: float = 120) -> float:
        """Wait until no slot of any agent is in use, which means that every environment is gone.

        Return the time of the end of this wait, in seconds of `time.time`.
        """
        await self.until(lambda: not any(each.running for each in self.streams), timeout)
        self.given.clear()
        return time.time()

    async def until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until `condition()` is true, which depends on the streams of agents. Fail after `timeout` seconds."""
        async with asyncio.timeout(timeout), self.changed:
            await self.changed.wait_for(condition)

    async def note(self) -> None:
        """Wake the tasks that wait in `until`, so that they check their conditions again."""
        async with self.changed:
            self.changed.notify_all()

    # ---- the gRPC service

    async def Connect(  # noqa: N802 - the name is the contract's
        self, request_iterator: AsyncIterator[wire.AgentMessage], context: Any
    ) -> AsyncIterator[wire.SchedulerMessage]:
        stream = Stream()
        reader = asyncio.create_task(self.read(stream, request_iterator), name="bench reader")
        try:
            while True:
                yield await stream.outgoing.get()
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader

    async def read(self, stream: Stream, messages: AsyncIterator[wire.AgentMessage]) -> None:
        """Read the messages of one agent until its stream ends."""
        async for message in messages:
            match message.WhichOneof("message"):
                case "register":
                    await self.register(stream)
                case "health":
                    stream.running = message.health.running
                    stream.ready = message.health.status == wire.Health.READY
                    stream.outgoing.put_nowait(wire.SchedulerMessage(ack=wire.Ack()))
                    await self.note()
                case "event":
                    self.take(stream, message.event)

    async def register(self, stream: Stream) -> None:
        registered = wire.Registered(scheduler="bench", features=["objects", "object-packs"])
        registered.health_interval.FromSeconds(10)
        registered.resume_grace.FromSeconds(60)
        stream.outgoing.put_nowait(wire.SchedulerMessage(registered=registered))
        stream.registered_at = time.time()
        self.streams.append(stream)
        await self.note()

    def take(self, stream: Stream, event: wire.Event) -> None:
        """Record an event of an action, and acknowledge the event to the agent."""
        now = time.time()
        ack = wire.Ack(action_id=event.action_id, attempt=event.attempt, claim=event.claim, seq=event.seq)
        stream.outgoing.put_nowait(wire.SchedulerMessage(ack=ack))
        self.given[event.action_id].take(event, now)

    async def FetchInput(  # noqa: N802 - the name is the contract's
        self,
        request: wire.FetchInputRequest,
        context: Any,
    ) -> AsyncIterator[wire.ArtifactChunk]:
        """Refuse the call, because no action of this scheduler has inputs."""
        raise AssertionError(f"{request.action_id} has no inputs")
        yield wire.ArtifactChunk()

    async def UploadArtifacts(  # noqa: N802 - the name is the contract's
        self, request_iterator: AsyncIterator[wire.ArtifactChunk], context: Any
    ) -> wire.UploadReceipt:
        """Receive one upload of files and count its bytes."""
        end = wire.UploadEnd()
        async for chunk in request_iterator:
            for part in chunk.parts:
                self.uploaded += len(part.data)
                if part.HasField("end"):
                    end = part.end
        return wire.UploadReceipt(files=end.files, bytes=end.bytes)


class Agent:
    """One process of the agent: `python -m agent serve`."""

    def __init__(self, scheduler: MinimalScheduler, number: int, settings: dict[str, Any]) -> None:
        self.log = scheduler.folder / f"agent-{number}.log"
        self.config = scheduler.folder / f"agent-{number}.yaml"
        base = {
            "scheduler": {"address": scheduler.address, "tls": {"enabled": False}},
            "agent": {"pool": "bench", "slots": 250},
            "cluster": {"namespace": scheduler.namespace, "kubeconfig": kube.kubeconfig()},
            "environment": {"grace": "2s"},
            "policy": {"default_cpu": "1m", "default_memory": "8Mi"},
            "http": {"host": "127.0.0.1", "port": 0},
            "logging": {"format": "json", "level": "warning"},
        }
        for section, values in settings.items():
            base[section] = base.get(section, {}) | values
        self.config.write_text(yaml.safe_dump(base))
        self.process: asyncio.subprocess.Process | None = None
        self.started_at = 0.0

    async def start(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SEALCI_")}
        self.started_at = time.time()
        with self.log.open("wb") as log:
            command = (sys.executable, "-m", "agent", "serve", "--config", str(self.config))
            self.process = await asyncio.create_subprocess_exec(*command, env=kept, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        """Return the process id of the agent."""
        assert self.process is not None
        return self.process.pid

    @property
    def cpu(self) -> float:
        """Return the CPU seconds that the agent process has used since its start."""
        return machine.cpu_of(self.pid)

    async def stop(self) -> None:
        """Stop the agent with SIGTERM. Fail if the agent's exit code is not 0."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                code = await self.process.wait()
            assert code == 0, self.log.read_text()


@asynccontextmanager
async def minimal_scheduler(namespace: str) -> AsyncIterator[MinimalScheduler]:
    """Run a MinimalScheduler with a temporary folder while the block runs. Its agents create pods in `namespace`."""
    with tempfile.TemporaryDirectory(prefix="sealci-bench-") as folder:
        async with MinimalScheduler(namespace, Path(folder)).serving() as serving:
            yield serving
