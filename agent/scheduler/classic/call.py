"""One gRPC call from a classic scheduler to the agent. The scheduler is the client of the call.

A `Call` turns the events of one session into responses. It lives until the gRPC call and the session have both ended,
and implements `execution.ports.SessionSink`. The window limits the bytes of log that wait for a response. While the
window is full, `send` waits, so that the log of the environment is read more slowly. When the client is gone, events
are dropped, because a classic scheduler cannot ask for them again.

The client stores the log of each response as one row of a table, and later reads the rows in no defined order. A
response therefore collects all log of a short time, so that few rows can be in a wrong order. The last response carries
the rest of the log.
"""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from typing import TYPE_CHECKING

from agent.domain.errors import AgentError, Reason, SchedulerError, Stage
from agent.domain.events import ArtifactSummary, CommandStarted, Finished, LogChunk, Rejected, Source, StageChanged
from agent.domain.outcome import Result
from agent.scheduler.classic.timings import DEFAULT_TIMINGS
from agent.scheduler.classic.wire import actions_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from agent.domain.actions import Action, Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import Event
    from agent.domain.outcome import Outcome
    from agent.scheduler.classic.file_store import FileStore
    from agent.scheduler.classic.timings import ClassicTimings

# Maximum number of bytes of log in one response.
MAX_TEXT = 64 << 10
# Exit codes for outcomes without an exit code of the commands. `actions.proto` documents them.
TIMED_OUT, NOT_RUN, CANCELLED = 124, 125, 130
# Maximum number of characters of a command that the log shows.
MAX_ECHO = 4096


class CallRefused(AgentError):
    """The action of a call was not run. The message is the reason, which the scheduler gets."""


class Call:
    """One call of the scheduler, which runs one action.

    `admitted` is set when the action has a session, or when `refusal` holds the reason why the action gets no session.
    `echo`: whether the log shows each command and the progress of the set-up.
    """

    def __init__(
        self,
        number: int,
        action: Action,
        window: int,
        files: FileStore | None,
        timings: ClassicTimings = DEFAULT_TIMINGS,
        *,
        echo: bool = False,
    ) -> None:
        self.number = number
        self.action = action
        self.window = window
        self.files = files
        self.timings = timings
        self.echo = echo
        self.admitted = asyncio.Event()
        self.refusal: str | None = None
        self.outcome: Outcome | None = None
        self.status = wire.ACTION_STATUS_PENDING
        self.last_status_sent: wire.ActionStatus.ValueType | None = None
        self.last_notice = ""
        self.last_detail = ""
        self.is_mid_line = False  # whether the log ends in output of the commands without a newline
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
        return self.action.key

    # ---- methods that the session calls

    async def send(self, event: Event) -> None:
        """Add an event to the responses. Waits while the window of unwritten log is full.

        Events that the classic protocol cannot carry are dropped.
        """
        match event:
            case LogChunk():
                await self.add_log(event.data, own=event.source is not Source.COMMANDS)
                # The session sends its explanation of a failure as the last notice before the outcome.
                self.last_notice = "" if event.source is Source.COMMANDS else event.data.decode("utf-8", "replace")
            case StageChanged(stage=Stage.SETUP, detail=detail) if detail != self.last_detail:
                self.last_detail = detail
                await self.add_echo(f"[{detail}]\n" if detail else "")
            case CommandStarted():
                await self.add_echo(echo_of(self.action.commands[event.index - 1]))
            case StageChanged(stage=Stage.COMMANDS):
                self.status = wire.ACTION_STATUS_RUNNING
                self.wake.set()
            case ArtifactSummary() if event.files and self.files is not None:
                await self.add_log(self.files.describe(self.key, event).encode(), own=True)
            case Rejected():
                self.refuse(f"{event.message}; the action was not run")
            case Finished():
                self.outcome = event.outcome
                self.wake.set()

    async def wait_until_stored(self) -> None:
        """Wait until all responses are written or the client is gone. A classic scheduler sends no acknowledgement."""
        await self.done.wait()

    async def upload(self, parts: AsyncIterator[FilePart]) -> None:
        """Store the files in the agent's folder for files.

        Raises:
            SchedulerError: the agent has no such folder.
            Exception: whatever `parts` or `FileStore.keep` raises.
        """
        if self.files is None:
            raise SchedulerError("this agent keeps no files")
        await self.files.keep(self.key, parts)

    @property
    def stores_references(self) -> bool:
        """Return False, because a classic scheduler stores no files."""
        return False

    @property
    def stores_packs(self) -> bool:
        """Return False, because a classic scheduler stores no files."""
        return False

    def fetch(self, number: int) -> AsyncGenerator[FilePart, None]:
        """Refuse, because a classic scheduler sends no inputs.

        Raises:
            SchedulerError: always.
        """
        raise SchedulerError(f"a classic scheduler has no input {number}")

    def restart(self, seq: int) -> None:
        """Do nothing, because a classic scheduler never asks for events again."""

    def close(self) -> None:
        """End the call. A session is closed without an outcome if the agent must stop at once."""
        if not self.done.is_set():
            self.refuse("the agent stopped before the action had ended")

    # ---- methods that the gRPC service calls

    async def next(self) -> wire.ActionResponseStream:
        """Wait for the next response to write. Only the last response has an exit code.

        If the caller cancels the wait, no part of the log is lost.
        """
        while not self.is_due:
            self.wake.clear()
            await self.wake.wait()
        # The first response is written at once, so that the client sees that the agent has taken the action.
        if self.last_status_sent is not None:
            await self.gather()
        text = self.decoder.decode(self.take_bytes()) if self.unwritten else ""
        is_last = self.is_complete and not self.unwritten
        # The client must get a response with the status of the running action before the last response.
        if is_last and (self.status == wire.ACTION_STATUS_PENDING or self.status == self.last_status_sent):
            return self.last_response(text)
        return self.response(text)

    @property
    def is_complete(self) -> bool:
        """Whether no more log will come."""
        return self.outcome is not None or self.refusal is not None

    @property
    def is_due(self) -> bool:
        """Whether there is log, a new status or the end of the action to write to the client."""
        return bool(self.unwritten) or self.is_complete or self.last_status_sent != self.status

    async def gather(self) -> None:
        """Wait for more log, until a response is full, the log is complete, or a short time has passed."""
        try:
            async with asyncio.timeout(self.timings.gather):
                while self.size < MAX_TEXT and not self.is_complete:
                    self.wake.clear()
                    await self.wake.wait()
        except TimeoutError:
            return

    def response(self, text: str) -> wire.ActionResponseStream:
        """Return a response with the text and the current status."""
        self.last_status_sent = self.status
        # Every response has a result, because a classic scheduler drops a response without a result, and with it the
        # log in the response.
        result = wire.ActionResult(completion=self.status)
        return wire.ActionResponseStream(action_id=self.number, log=storable(text), result=result)

    def last_response(self, text: str) -> wire.ActionResponseStream:
        """Return the last response: the rest of the log, the exit code, and a failure reason that is not in the log."""
        text += self.decoder.decode(b"", True)
        reason = self.refusal or ""
        if self.outcome is not None:
            # The outcome's message joins several faults by "; ". The last notice in the log lists the same faults, one
            # per line.
            is_logged = all(part in self.last_notice for part in self.outcome.message.split("; "))
            reason = "" if is_logged else self.outcome.message
        if reason:
            text += f"\n[{reason}]\n" if self.is_mid_line else f"[{reason}]\n"
        code = NOT_RUN if self.outcome is None else exit_code(self.outcome)
        result = wire.ActionResult(completion=wire.ACTION_STATUS_COMPLETED, exit_code=code)
        return wire.ActionResponseStream(action_id=self.number, log=storable(text), result=result)

    def refuse(self, why: str) -> None:
        """End the call without an outcome. The last response carries the reason."""
        self.refusal = why
        self.admitted.set()
        self.end_waits()

    def end_waits(self) -> None:
        """End every wait on this call, because the call has ended or will send nothing more."""
        self.is_over = True
        for event in (self.room, self.wake, self.done):
            event.set()

    # ---- internal methods

    async def add_echo(self, text: str) -> None:
        if self.echo and text:
            await self.add_log(text.encode(), own=True)

    async def add_log(self, data: bytes, *, own: bool) -> None:
        """Add bytes to the unwritten log. Waits while the window of unwritten log is full.

        After the end of the call, the bytes are dropped.

        `own`: the bytes are text of the agent and not output of the commands. Such text begins on a new line.
        """
        # This lock serves its callers in the order in which they arrive, so the log keeps its order.
        async with self.send_lock:
            while not self.is_over and self.size and self.size + len(data) > self.window:
                self.room.clear()
                await self.room.wait()
            if own and self.is_mid_line:
                data = b"\n" + data
            self.is_mid_line = not own and not data.endswith(b"\n")
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


def storable(text: str) -> str:
    """Return the text without NUL, which the database of the client cannot store."""
    return text.replace("\0", "\ufffd")


def echo_of(command: str) -> str:
    """Return the lines of log that show a command, as a shell with a prompt shows them."""
    shown = command if len(command) <= MAX_ECHO else f"{command[:MAX_ECHO]}..."
    return "$ " + "\n> ".join(shown.rstrip("\n").split("\n")) + "\n"


def exit_code(outcome: Outcome) -> int:
    """Return the exit code for the client. Only a success is 0."""
    if outcome.result is Result.SUCCEEDED:
        return 0
    if outcome.reason is Reason.DEADLINE_EXCEEDED:
        return TIMED_OUT
    return outcome.exit_code or (CANCELLED if outcome.result is Result.CANCELLED else NOT_RUN)
