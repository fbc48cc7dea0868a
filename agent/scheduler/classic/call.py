"""One call of the scheduler. It takes the events of one session and turns them into responses for the client.

A `Call` lives from the arrival of the gRPC call until the call and its session have both ended. It implements
`execution.ports.SessionSink`. The window bounds the log that is not yet written. While the window is full, `send`
waits, so that the log of the environment is read more slowly. When the client is gone, events are dropped, because no
client can ask for them again.
"""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from typing import TYPE_CHECKING

import grpc

from agent.domain.actions import When
from agent.domain.errors import AgentError, Reason, Rejection, SchedulerError, Stage
from agent.domain.events import ArtifactSummary, Finished, LogChunk, Rejected, Source, StageChanged
from agent.domain.outcome import Result
from agent.scheduler.classic.wire import actions_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Action, Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event
    from agent.domain.outcome import Outcome
    from agent.scheduler.classic.file_store import FileStore

# Maximum number of bytes of log in one response.
MAX_TEXT = 64 << 10
# Exit codes for outcomes without an exit code of the commands. `actions.proto` documents them.
TIMED_OUT, NOT_RUN, CANCELLED = 124, 125, 130
NOT_KEPT = b"[this agent keeps no files of the action; set scheduler.classic.files to keep them]\n"


class CallRefused(AgentError):
    """The call ends with a gRPC status and without a result."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Call:
    """One call. `admitted` is set when the action has a session, or when `refusal` holds the reason for none."""

    def __init__(self, number: int, action: Action, window: int, files: FileStore | None) -> None:
        self.number = number
        self.action = action
        self.window = window
        self.files = files
        self.admitted = asyncio.Event()
        self.refusal: CallRefused | None = None
        self.outcome: Outcome | None = None
        self.status = wire.ACTION_STATUS_PENDING
        self.last_status_sent: wire.ActionStatus.ValueType | None = None
        self.last_notice = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.unwritten: deque[bytes] = deque()
        self.size = 0
        self.is_over = False
        self.send_lock = asyncio.Lock()
        self.room = asyncio.Event()
        self.wake = asyncio.Event()
        self.done = asyncio.Event()

    @property
    def key(self) -> Key:
        """The key of the action."""
        return self.action.key

    # ---- methods that the session calls

    async def send(self, event: Event) -> None:
        """Take the events that the protocol can carry, waiting while the window is full. Other events are dropped."""
        match event:
            case LogChunk():
                await self.add_log(event.data)
                # The session sends its explanation of a failure as the last notice before the outcome.
                self.last_notice = "" if event.source is Source.COMMANDS else event.data.decode("utf-8", "replace")
            case StageChanged(stage=Stage.COMMANDS):
                self.status = wire.ACTION_STATUS_RUNNING
                self.wake.set()
            case ArtifactSummary() if event.files and self.files is not None:
                await self.add_log(self.files.describe(self.key, event).encode())
            case Rejected():
                self.refuse(refusal_of(event))
            case Finished():
                await self.finish(event.outcome)

    async def wait_until_stored(self) -> None:
        """Wait until everything is written to the client or the client is gone. Classic clients acknowledge nothing."""
        await self.done.wait()

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Keep the files in the agent's folder.

        Raises:
            SchedulerError: the agent has no folder for files.
            Exception: whatever `parts` or `FileStore.keep` raises.
        """
        if self.files is None:
            raise SchedulerError("this agent keeps no files")
        await self.files.keep(self.key, parts)

    def restart(self, seq: int) -> None:
        """Do nothing, because a classic scheduler never asks for events again."""

    def close(self) -> None:
        """End the call. A session is closed without an outcome if the agent must stop at once."""
        if not self.done.is_set():
            self.refuse(CallRefused(grpc.StatusCode.UNAVAILABLE, "the agent stopped before the action had ended"))

    # ---- methods that the service calls

    async def next(self) -> wire.ActionResponseStream:
        """Wait for the next response to write. The last response has an exit code.

        Raises:
            CallRefused: the call has no result.
        """
        while True:
            self.wake.clear()
            if self.unwritten:
                return self.response(self.decoder.decode(self.take_bytes()))
            if self.outcome is not None:
                return self.last_response(self.outcome)
            if self.refusal is not None:
                raise self.refusal
            if self.last_status_sent != self.status:
                return self.response("")
            await self.wake.wait()

    def response(self, text: str) -> wire.ActionResponseStream:
        """Return a response with the text and the current status."""
        self.last_status_sent = self.status
        # Every response has a result, because a classic scheduler drops a response without a result, and with it the
        # log in the response.
        result = wire.ActionResult(completion=self.status)
        return wire.ActionResponseStream(action_id=self.number, log=text, result=result)

    def last_response(self, outcome: Outcome) -> wire.ActionResponseStream:
        """Return the response with the exit code.

        It also contains the reason of a failure, unless the log contains the reason.
        """
        text = self.decoder.decode(b"", True)
        if outcome.message and outcome.message not in self.last_notice:
            text += f"[{outcome.message}]\n"
        result = wire.ActionResult(completion=wire.ACTION_STATUS_COMPLETED, exit_code=exit_code(outcome))
        return wire.ActionResponseStream(action_id=self.number, log=text, result=result)

    def refuse(self, why: CallRefused) -> None:
        """End the call without a result. Log that is not yet written is written first."""
        self.refusal = why
        self.admitted.set()
        self.end_waits()

    def end_waits(self) -> None:
        """End every wait on this call, because the call has ended or will send nothing more."""
        self.is_over = True
        for event in (self.room, self.wake, self.done):
            event.set()

    # ---- internal methods

    async def add_log(self, data: bytes) -> None:
        """Add bytes to the window, waiting while it is full. The bytes are dropped when the call is over."""
        # The lock keeps the order of tasks that wait.
        async with self.send_lock:
            while not self.is_over and self.size and self.size + len(data) > self.window:
                self.room.clear()
                await self.room.wait()
            if not self.is_over:
                self.unwritten.append(data)
                self.size += len(data)
                self.wake.set()

    def take_bytes(self) -> bytes:
        """Return the next bytes of the log, up to `MAX_TEXT`."""
        taken = [self.unwritten.popleft()]
        size = len(taken[0])
        while self.unwritten and size + len(self.unwritten[0]) <= MAX_TEXT:
            taken.append(self.unwritten.popleft())
            size += len(taken[-1])
        self.size -= size
        self.room.set()
        return b"".join(taken)

    async def finish(self, outcome: Outcome) -> None:
        if outcome.result is Result.SUCCEEDED and self.action.artifacts.when is When.NEVER:
            await self.add_log(NOT_KEPT)
        self.outcome = outcome
        self.wake.set()


def exit_code(outcome: Outcome) -> int:
    """Return the exit code for the client. Only a success is 0."""
    if outcome.result is Result.SUCCEEDED:
        return 0
    if outcome.reason is Reason.DEADLINE_EXCEEDED:
        return TIMED_OUT
    return outcome.exit_code or (CANCELLED if outcome.result is Result.CANCELLED else NOT_RUN)


def refusal_of(rejected: Rejected) -> CallRefused:
    """Return the status that ends the call of a rejected action."""
    full = rejected.why is Rejection.NO_SLOT
    return CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.UNAVAILABLE, rejected.message)
