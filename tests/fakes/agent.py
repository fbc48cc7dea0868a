"""An agent that a test controls: it registers with a real scheduler and sends exactly what the test asks for.

A FakeAgent lives as long as its `async with` block. It sends no event by itself, unless the test passes a function
`answer`, which sends events for each action.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING

import grpc

from agent.domain.actions import Key
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import Reason, Stage
from agent.domain.events import (
    Accepted,
    ArtifactSummary,
    CommandFinished,
    CommandStarted,
    Finished,
    LogChunk,
    StageChanged,
)
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Health, Readiness, SessionState
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.protocol.wire import agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from types import TracebackType

    from agent.domain.events import Event

SUCCESS = Outcome(Result.SUCCEEDED, Stage.COMMANDS, exit_code=0, command=1)
FAILURE = Outcome(
    Result.FAILED, Stage.COMMANDS, Reason.COMMAND_FAILED, exit_code=3, command=1, message="command 1 failed"
)
CANCELLED = Outcome(Result.CANCELLED, Stage.COMMANDS, Reason.CANCELLED, message="interrupted")
DEADLINE = 30.0


def life(text: bytes = b"hello\n", outcome: Outcome = SUCCESS) -> list[Event]:
    """Return all events of a short action, from Accepted to Finished.

    The action logs `text` and ends with `outcome`.
    """
    return [
        Accepted("actions/pod"),
        StageChanged(Stage.SETUP),
        StageChanged(Stage.COMMANDS),
        CommandStarted(1, Cursor(command=1)),
        LogChunk(text, Cursor(len(text), 1)),
        CommandFinished(1, outcome.exit_code or 0, 0.5, Cursor(len(text), 1)),
        Finished(outcome),
    ]


def file_parts(*files: tuple[bytes, bytes], mode: int = 0o644) -> list[wire.ArtifactPart]:
    """Return the parts of an upload of whole files, then the part that ends the upload.

    `files` are pairs of a path and the content.
    """
    parts = []
    for path, content in files:
        parts.append(translate.part_message(FileStart(path, mode, len(content))))
        parts.append(translate.part_message(FileData(content)))
        parts.append(translate.part_message(FileEnd(hashlib.sha256(content).digest())))
    total = sum(len(content) for _, content in files)
    parts.append(translate.part_message(translate.UploadEnd(len(files), total)))
    return parts


class FakeAgent:
    """One replica of the agent, which sends only what a test asks for.

    `received` has a queue for each kind of message that the scheduler sends. Registered and acknowledgements of events
    are left out. The queue `heard` has the acknowledgements of health reports.
    """

    def __init__(
        self,
        address: str,
        *,
        pod: str = "pod",
        nonce: str = "1",
        slots: int = 2,
        token: str = "",
        sessions: Sequence[SessionState] = (),
        answer: Callable[[FakeAgent, wire.Action], Awaitable[None]] | None = None,
        ready: bool = True,
        protocol: int = 1,
        features: Sequence[str] = (),
        classes: Sequence[str] = (),
    ) -> None:
        self.address = address
        self.agent_id = f"{pod}.{nonce}"
        self.slots = slots
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.sessions = sessions
        self.answer = answer
        self.ready = ready
        self.protocol = protocol
        self.features = features
        self.classes = classes
        self.running = 0
        self.seqs: dict[tuple[str, int], int] = {}
        self.received: dict[str, asyncio.Queue[object]] = {}
        self.acks: dict[tuple[str, int], int] = {}
        self.acked = asyncio.Condition()
        self.writing = asyncio.Lock()
        self.code: grpc.StatusCode | None = None
        self.registered = asyncio.Event()
        self.ended = asyncio.Event()
        self.answers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeAgent:
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = agent_pb2_grpc.SchedulerStub(self.channel)
        self.call = self.stub.Connect(metadata=self.metadata)
        self.reader = asyncio.create_task(self.read(), name=f"fake {self.agent_id}")
        register = wire.Register(
            agent_id=self.agent_id,
            protocol_version=self.protocol,
            pool="default",
            slots=self.slots,
            sessions=[translate.session_state_message(each) for each in self.sessions],
            features=self.features,
            classes=self.classes,
        )
        # If the stream breaks during this write, the method `read` stores the status of the stream.
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self.write(wire.AgentMessage(register=register))
        answers = [asyncio.ensure_future(self.registered.wait()), asyncio.ensure_future(self.ended.wait())]
        await asyncio.wait(answers, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        for each in answers:
            each.cancel()
        if self.ready and self.registered.is_set():
            await self.health()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Break the stream, as a dead agent does."""
        for task in (*self.answers, self.reader):
            task.cancel()
        await asyncio.gather(*self.answers, self.reader, return_exceptions=True)
        self.call.cancel()
        await self.channel.close()

    async def read(self) -> None:
        """Read the stream to its end. Queue each message of the scheduler by the message's kind."""
        try:
            async for message in self.call:
                kind = message.WhichOneof("message")
                if kind == "registered":
                    self.registered.set()
                elif kind == "ack":
                    await self.note(message.ack)
                else:
                    self.queue(str(kind)).put_nowait(getattr(message, str(kind)))
                    if kind == "action" and self.answer is not None:
                        self.answers.add(asyncio.ensure_future(self.answer(self, message.action)))
            self.code = await self.call.code()
        except grpc.aio.AioRpcError as error:
            self.code = error.code()
        finally:
            self.ended.set()

    async def note(self, ack: wire.Ack) -> None:
        """Record an acknowledgement of the scheduler.

        For the events of an attempt, store the acknowledged number. For a health report, queue the acknowledgement.
        """
        if ack.action_id:
            async with self.acked:
                self.acks[ack.action_id, ack.attempt] = ack.seq
                self.acked.notify_all()
        else:
            self.queue("heard").put_nowait(ack)

    def queue(self, kind: str) -> asyncio.Queue[object]:
        """Return the queue of the messages of one kind, such as `action`, that the scheduler has sent."""
        return self.received.setdefault(kind, asyncio.Queue())

    async def take(self, kind: str) -> object:
        """Wait for the next message of one kind from the scheduler, and return it."""
        async with asyncio.timeout(DEADLINE):
            return await self.queue(kind).get()

    async def action(self) -> wire.Action:
        found = await self.take("action")
        assert isinstance(found, wire.Action)
        return found

    async def acknowledged(self, key: Key, seq: int) -> None:
        """Wait until the scheduler has acknowledged the events of an attempt up to the number `seq`."""
        async with asyncio.timeout(DEADLINE), self.acked:
            await self.acked.wait_for(lambda: self.acks.get(key.attempt_key, 0) >= seq)

    async def write(self, message: wire.AgentMessage) -> None:
        async with self.writing:
            await self.call.write(message)

    async def health(self, status: Readiness = Readiness.READY, running: int | None = None, message: str = "") -> None:
        """Report the agent's health to the scheduler, and wait for the acknowledgement."""
        self.running = self.running if running is None else running
        health = Health(status, self.slots, self.running, message=message)
        await self.write(wire.AgentMessage(health=translate.health_message(health)))
        await self.take("heard")

    async def event(self, key: Key, event: Event, seq: int | None = None) -> int:
        """Send an event of an attempt. Return the event's number.

        `seq` is the event's number within the attempt, by default the next number.
        """
        if seq is None:
            seq = self.seqs[key.attempt_key] = self.seqs.get(key.attempt_key, 0) + 1
        await self.write(wire.AgentMessage(event=translate.event_message(key, seq, event)))
        return seq

    async def live(self, action: wire.Action, events: Sequence[Event] | None = None) -> None:
        """Send all events of an action and wait until the scheduler has acknowledged them.

        By default, the events are those of a short success.
        """
        key = translate.key(action)
        seq = 0
        for event in life() if events is None else events:
            seq = await self.event(key, event)
        await self.acknowledged(key, seq)

    async def upload(
        self, key: Key, parts: Sequence[wire.ArtifactPart], *, summary: ArtifactSummary | None = None
    ) -> wire.UploadReceipt:
        """Upload files to the scheduler. Return the receipt that the scheduler sends.

        If `summary` is given, send `summary` as an event after the upload.
        """

        async def chunks() -> AsyncIterator[wire.ArtifactChunk]:
            yield wire.ArtifactChunk(header=translate.upload_header_message(key, self.agent_id))
            for part in parts:
                yield wire.ArtifactChunk(parts=[part])

        receipt: wire.UploadReceipt = await self.stub.UploadArtifacts(
            chunks(), metadata=self.metadata, timeout=DEADLINE
        )
        if summary is not None:
            await self.event(key, summary)
        return receipt


async def succeed(agent: FakeAgent, action: wire.Action) -> None:
    """Send the events of an action that ends with success after one log line."""
    await agent.live(action)
