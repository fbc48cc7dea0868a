"""One call of the scheduler: the way out of one session, and all that its client is ever told.

Lives from the call's arrival to its end or the session's, whichever is later. Implements `execution.event_sink.SessionSink`. What
is not yet written is bounded by the window: `send` waits while the client is slow, so that the log is held back and
not kept. When the client is gone, what is sent is dropped: nobody can ask for it again.
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
    from agent.scheduler.classic.file_store import Folder

MAX_TEXT = 64 << 10
TIMED_OUT, NOT_RUN, CANCELLED = 124, 125, 130
NOT_KEPT = b"[this agent keeps no files: what the commands made is gone (scheduler.classic.files)]\n"


class CallRefused(AgentError):
    """The call ends with a status, without a result."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Call:
    """The state of one call. `begun` is set when the action has got its session, or when `refused` says why not."""

    def __init__(self, number: int, action: Action, window: int, folder: Folder | None) -> None:
        self.number = number
        self.action = action
        self.window = window
        self.folder = folder
        self.begun = asyncio.Event()
        self.refused: CallRefused | None = None
        self.outcome: Outcome | None = None
        self.status = wire.ACTION_STATUS_PENDING
        self.told: wire.ActionStatus.ValueType | None = None
        self.explained = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pieces: deque[bytes] = deque()
        self.size = 0
        self.is_over = False
        self.queue = asyncio.Lock()
        self.room = asyncio.Event()
        self.news = asyncio.Event()
        self.done = asyncio.Event()

    @property
    def key(self) -> Key:
        """Whose call it is."""
        return self.action.key

    # ---- for the session

    async def send(self, event: Event) -> None:
        """Take what this wire can carry, waiting while the window is full; other events have no place in it."""
        match event:
            case LogChunk():
                await self.write(event.data)
                # An explanation is the last that the session says before its outcome.
                self.explained = "" if event.source is Source.COMMANDS else event.data.decode("utf-8", "replace")
            case StageChanged(stage=Stage.COMMANDS):
                self.status = wire.ACTION_STATUS_RUNNING
                self.news.set()
            case ArtifactSummary() if event.files and self.folder is not None:
                await self.write(self.folder.sentence(self.key, event).encode())
            case Rejected():
                self.refuse(refusal(event))
            case Finished():
                await self.finish(event.outcome)

    async def wait_until_stored(self) -> None:
        """Wait until everything was written to the client, or nobody is there any more."""
        await self.done.wait()

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Keep files in the folder.

        Raises:
            SchedulerError: there is none.
            Exception: whatever `parts` or `Folder.keep` raises.
        """
        if self.folder is None:
            raise SchedulerError("this agent keeps no files")
        await self.folder.keep(self.key, parts)

    def restart(self, seq: int) -> None:
        """Do nothing: over this wire nobody asks for anything again."""

    def close(self) -> None:
        """End the call of a session that has no outcome: its agent was told to end at once."""
        if not self.done.is_set():
            self.refuse(CallRefused(grpc.StatusCode.UNAVAILABLE, "the agent left before the action had ended"))

    # ---- for the service

    async def next(self) -> wire.ActionResponseStream:
        """Wait for what is to be written next.

        Raises:
            CallRefused: the call has no result.
        """
        while True:
            self.news.clear()
            if self.pieces:
                return self.response(self.decoder.decode(self.taken()))
            if self.outcome is not None:
                return self.last(self.outcome)
            if self.refused is not None:
                raise self.refused
            if self.told != self.status:
                return self.response("")
            await self.news.wait()

    def response(self, text: str) -> wire.ActionResponseStream:
        """Return text with the status of now; there is always a result, because that scheduler drops what has none."""
        self.told = self.status
        result = wire.ActionResult(completion=self.status)
        return wire.ActionResponseStream(action_id=self.number, log=text, result=result)

    def last(self, outcome: Outcome) -> wire.ActionResponseStream:
        """Return the last response: why the action did not succeed, unless the log has said it, and the exit code."""
        text = self.decoder.decode(b"", True)
        if outcome.message and outcome.message not in self.explained:
            text += f"[{outcome.message}]\n"
        result = wire.ActionResult(completion=wire.ACTION_STATUS_COMPLETED, exit_code=exit_code(outcome))
        return wire.ActionResponseStream(action_id=self.number, log=text, result=result)

    def refuse(self, why: CallRefused) -> None:
        """End the call without a result; what is still to be written comes first."""
        self.refused = why
        self.begun.set()
        self.gone()

    def gone(self) -> None:
        """Hold nobody any longer: the call has ended, or will say nothing more."""
        self.is_over = True
        for event in (self.room, self.news, self.done):
            event.set()

    # ---- inside

    async def write(self, data: bytes) -> None:
        """Take bytes into the window, waiting while it is full; dropped when nobody is there any more."""
        async with self.queue:  # senders that wait keep their order
            while not self.is_over and self.size and self.size + len(data) > self.window:
                self.room.clear()
                await self.room.wait()
            if not self.is_over:
                self.pieces.append(data)
                self.size += len(data)
                self.news.set()

    def taken(self) -> bytes:
        """Return the next bytes, joined as far as one response goes."""
        taken = [self.pieces.popleft()]
        size = len(taken[0])
        while self.pieces and size + len(self.pieces[0]) <= MAX_TEXT:
            taken.append(self.pieces.popleft())
            size += len(taken[-1])
        self.size -= size
        self.room.set()
        return b"".join(taken)

    async def finish(self, outcome: Outcome) -> None:
        """Take the outcome."""
        if outcome.result is Result.SUCCEEDED and self.action.artifacts.when is When.NEVER:
            await self.write(NOT_KEPT)
        self.outcome = outcome
        self.news.set()


def exit_code(outcome: Outcome) -> int:
    """Return the one number that tells this client how an action ended; 0 is success and nothing else."""
    if outcome.result is Result.SUCCEEDED:
        return 0
    if outcome.reason is Reason.DEADLINE_EXCEEDED:
        return TIMED_OUT
    return outcome.exit_code or (CANCELLED if outcome.result is Result.CANCELLED else NOT_RUN)


def refusal(rejected: Rejected) -> CallRefused:
    """Return how a call ends whose action was not taken."""
    full = rejected.why is Rejection.NO_SLOT
    return CallRefused(grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.UNAVAILABLE, rejected.message)
