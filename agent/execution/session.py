"""One attempt of one action on this agent: its state, and everything that is sent to the scheduler about it.

A session lives from the acceptance of its action until its environment is gone. It owns the outlet of its events and
the one wish that can end it early (cancel, timeout, shutdown); `run` drives it. It speaks for nobody else: the verdict
comes from the cluster's side, the bytes from the log and the files.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from agent.domain.errors import Reason, Stage
from agent.domain.events import Accepted, Finished, LogChunk, Source, StageChanged
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.execution.logs.masking import Masker
from agent.telemetry.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agent.domain.actions import Action, Cancel
    from agent.domain.errors import ActionFailed
    from agent.domain.events import Event
    from agent.domain.session_state import Resume
    from agent.execution.event_sink import SessionSink
    from agent.execution.logs.pipeline import LogStream
    from agent.execution.ports import Environment

log = structlog.get_logger(__name__)

MAX_CHUNK = 64 * 1024
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wish:
    """Why a session shall end early, and how long its commands may take after TERM (None: the policy's grace)."""

    reason: Reason
    message: str
    grace: float | None = None


@dataclass(frozen=True, slots=True)
class End:
    """How the commands ended. `files`: whether the workspace can still be read, else `files_lost` says why not."""

    outcome: Outcome
    files: bool
    files_lost: str = ""


class Interrupted(Exception):
    """The session shall end now; raised inside its own task only, never a failure of anything."""

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish.message)
        self.wish = wish


class Session:
    """The state of one attempt.

    `stage` and `command` are where it stands, `start` where its log is read from, `spent` the seconds that its commands
    had before this agent adopted it, `where` waits for the scheduler's word on an adopted session. `wish` is
    set at most once; `outcome` when it is decided; `over` when nothing more is wanted of it than that it cleans up.
    `command_seconds` and `files_failed` (a word, why files could not be had) are for the metrics.

    A scheduler that has lost what it stored of the session is told again from `forgotten` on: the session stays, with
    its environment (`made`), how its commands ended (`end`) and its outcome, and only the telling begins again.
    """

    def __init__(self, action: Action, outlet: SessionSink, timeout: float, trace: Trace | None = None) -> None:
        self.action = action
        self.key = action.key
        self.outlet = outlet
        self.timeout = timeout
        self.trace = trace or Trace(action.traceparent)
        self.began = time.monotonic()
        self.stage = Stage.ADMISSION
        self.stage_began = self.began
        self.command = 0
        self.outcome: Outcome | None = None
        self.over = False
        self.wish: Wish | None = None
        self.wished = asyncio.Event()
        self.stage_seconds: dict[Stage, float] = {}
        self.retries = 0
        self.errors = 0
        self.files_failed = ""
        self.command_seconds: list[float] = []
        self.environment: Environment | None = None
        self.spent = 0.0
        self.start = Cursor()
        self.where: asyncio.Future[Resume] | None = None
        self.made = False
        self.known = 0
        self.end: End | None = None
        self.forgotten: Resume | None = None
        self.forgot = asyncio.Event()
        self.log_left_out: tuple[int, int, dict[bool, int]] = (0, 0, {})

    def resumed(self, resume: Resume) -> None:
        """Stand where the scheduler says that the session stood when its former agent was lost."""
        self.action = replace(self.action, secrets=dict(resume.secrets))
        self.start = resume.cursor
        self.command = resume.command
        self.known = resume.seq
        if resume.stage is not None:
            self.stage = resume.stage
            self.trace.enter(self.stage.value)

    def interrupt(self, wish: Wish) -> None:
        """Ask the session to end; the first wish counts."""
        if self.wish is None and self.outcome is None:
            self.wish = wish
            self.wished.set()

    def cancel(self, cancel: Cancel) -> None:
        """Ask the session to end because the scheduler says so."""
        self.interrupt(Wish(Reason.CANCELLED, cancel.message or "cancelled by request", cancel.grace))

    def serve_wish(self) -> None:
        """Take a wish for fulfilled: only a new one interrupts what follows."""
        self.wish = None
        self.wished.clear()

    async def guarded(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` until it ends or the session shall end.

        Raises:
            Interrupted: a wish came first; `work` has been cancelled and has ended.
        """
        task = asyncio.create_task(work, name=f"{self.stage.value} of {self.key.action_id}")
        try:
            await first_of(task, self.wished)
        finally:
            finished = task.done()
            await ended(task)
        if not finished and self.wish is not None:
            raise Interrupted(self.wish)
        return task.result()

    async def heard(self, telling: Coroutine[Any, Any, None]) -> bool:
        """Run `telling` to its end; False when the scheduler forgot meanwhile, and it has been ended."""
        task = asyncio.create_task(telling, name=f"session {self.key.action_id}/{self.key.attempt}: telling")
        try:
            await first_of(task, self.forgot)
        finally:
            finished = task.done()
            await ended(task)
        if finished:
            task.result()
        return finished

    def forget(self, resume: Resume) -> None:
        """Take note that the scheduler wants to be told again behind `resume.seq`."""
        self.forgotten = resume
        self.forgot.set()

    def begin_again(self) -> None:
        """Stand where the scheduler's memory ends: the log is read again from there."""
        assert self.forgotten is not None  # noqa: S101 - `forgot` was set with it
        resume = self.forgotten
        self.forgot.clear()
        self.start, self.command, self.known = resume.cursor, resume.command, resume.seq
        self.outlet.restart(resume.seq)
        if resume.cancel is not None:
            self.cancel(resume.cancel)

    async def repeat_outcome(self) -> None:
        """Tell a scheduler that forgot while the environment was removed the outcome; the log is gone by then."""
        while self.forgot.is_set() and self.outcome is not None:
            self.begin_again()
            if not self.known:
                await self.accept("")
            await self.say("[the log was lost by the scheduler, and its environment is gone: it cannot be sent again]")
            await self.heard(self.finish(self.outcome))

    async def accept(self, environment: str) -> None:
        """Tell that the action is run here."""
        await self.send(Accepted(environment))

    async def enter(self, stage: Stage, detail: str = "") -> None:
        """Begin a stage, or tell progress within it."""
        if stage is not self.stage:
            now = time.monotonic()
            self.stage_seconds[self.stage] = now - self.stage_began
            self.stage, self.stage_began = stage, now
            self.trace.enter(stage.value)
        await self.send(StageChanged(stage, detail))

    async def send(self, event: Event) -> None:
        """Hand an event to the outlet, waiting while its window is full."""
        await self.outlet.send(event)

    async def say(self, text: str, source: Source = Source.AGENT) -> None:
        """Write lines of the agent's own into the action's log."""
        data = self.hidden(text.encode("utf-8", "surrogateescape"))
        data = data if data.endswith(b"\n") else data + b"\n"
        for start in range(0, len(data), MAX_CHUNK):
            await self.send(LogChunk(data[start : start + MAX_CHUNK], source=source))

    async def finish(self, outcome: Outcome) -> None:
        """Tell the one outcome and wait until the scheduler has stored everything."""
        if self.outcome is None:
            message = self.hidden(outcome.message.encode("utf-8", "replace"))
            self.outcome = replace(outcome, message=message.decode("utf-8", "replace"))
        self.stage_seconds[self.stage] = time.monotonic() - self.stage_began
        self.trace.decided(self.outcome)
        await self.send(Finished(self.outcome))
        await self.outlet.wait_until_stored()
        self.trace.enter("cleanup")
        self.over = True

    def hidden(self, text: bytes) -> bytes:
        """Mask secrets in words of the agent's own: paths and messages in them come from whoever ran the action."""
        return Masker(self.action.secrets).mask(text)

    def count_log(self, stream: LogStream) -> None:
        """Note what was left out of the log, for the metrics."""
        self.log_left_out = (stream.left_out_of_lines, stream.left_out_of_total, stream.gaps)

    def failed(self, failure: ActionFailed) -> Outcome:
        """Return the outcome of a failure."""
        return Outcome(Result.FAILED, failure.stage, failure.reason, None, self.command, failure.message)

    def interrupted(self, wish: Wish, exit_code: int | None = None) -> Outcome:
        """Return the outcome of a session that had to end early."""
        result = Result.CANCELLED if wish.reason is Reason.CANCELLED else Result.FAILED
        return Outcome(result, self.stage, wish.reason, exit_code, self.command, wish.message)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; what it ended with stays with the task, but is logged if nobody can ask."""
    if task.done():
        return
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()):
        log.warning("a task failed while it was ended", task=task.get_name(), error=repr(error))


async def first_of(task: asyncio.Task[Any], event: asyncio.Event, timeout: float | None = None) -> None:
    """Wait for the end of a task, an event, or the time, whichever comes first."""
    waiter = asyncio.create_task(event.wait(), name=f"event beside {task.get_name()}")
    try:
        await asyncio.wait({task, waiter}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await ended(waiter)
