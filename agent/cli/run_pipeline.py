"""`sealci-agent run`: a pipeline from a file to its outcomes, with a scheduler in memory and the agent's own engine.

Everything starts and ends here: whatever happens, the actions are cancelled, the engine is asked to stop and is waited
for, so that nothing is left in the cluster. Only a second interruption leaves at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets as randomness
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import structlog

from agent.console import report_files
from agent.console.follower import Follower, Interruptions, OutputClosed, end, say
from agent.console.open_view import open_view
from agent.console.run_report import ExitCode
from agent.domain.errors import AgentError, SettingsError
from agent.local_scheduler.grpc_service import Access
from agent.local_scheduler.options import SchedulerOptions
from agent.local_scheduler.server import open_scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from typing import Any

    from agent.console.view import View
    from agent.local_scheduler.server import Scheduler
    from agent.pipeline.parser import Pipeline

log = structlog.get_logger()

OPTIONS = SchedulerOptions(health_interval=5.0, resume_grace=30.0)
AT_ONCE = 2.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the scheduler of a run is: plaintext on this machine, with a token that only this run has.

    `screen` gives the terminal to the engine, for a shell.
    """

    address: str
    token_file: Path
    screen: Callable[[], AbstractAsyncContextManager[None]]


if TYPE_CHECKING:
    Engine = Callable[[Endpoint, asyncio.Event], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: for the agent to be ready, for a cancelled pipeline to end, for the engine to leave, for all of it."""

    start: float = 30.0
    cancel: float = 300.0
    stop: float = 300.0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a person wants to see of a run.

    `kept`, `cleanup` and `no_cluster` are said where they help: what to do with what is left, how to get a cluster.
    """

    artifacts: Path | None = None
    output: str = "auto"
    quiet: bool = False
    reports: Sequence[Path] = ()
    kept: Callable[[str], Sequence[str]] | None = None
    cleanup: str = "sealci-agent cleanup"
    no_cluster: str = ""


async def run_pipeline(
    pipeline: Pipeline,
    *,
    engine: Engine,
    secrets: Mapping[str, str],
    wishes: Wishes | None = None,
    patience: Patience | None = None,
    interruptions: Interruptions | None = None,
    stream: TextIO | None = None,
) -> ExitCode:
    """Run a pipeline and show it on `stream` (standard output); the code says how it went.

    `engine` is the agent: called with its scheduler and an event, it runs until the event is set, then ends its
    sessions and returns when they are clean; what it raises means that it could not run.
    """
    wishes = wishes or Wishes()
    view = open_view(wishes.output, stream or sys.stdout, quiet=wishes.quiet)
    own = Interruptions()
    with contextlib.ExitStack() as stack:
        if interruptions is None:
            stack.enter_context(own.listening())
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealci-run-")))
        token_file = private / "token"
        token_file.touch(0o600)
        token_file.write_text(randomness.token_urlsafe(32), encoding="utf-8")
        try:
            async with open_scheduler(
                "127.0.0.1:0", wishes.artifacts or private / "files", Access(token_file), OPTIONS, durable=False
            ) as scheduler:
                drive = Drive(scheduler, view, interruptions or own, patience or Patience(), wishes)
                endpoint = Endpoint(scheduler.address, token_file, drive.follower.held)
                return await drive.run(pipeline, secrets, engine, endpoint)
        except AgentError as error:
            say(str(error))
            return ExitCode.INFRASTRUCTURE


class Drive:
    """One run: watches the pipeline, the engine, the clock and the person, and ends them in order."""

    def __init__(
        self, scheduler: Scheduler, view: View, interruptions: Interruptions, patience: Patience, wishes: Wishes
    ) -> None:
        self.scheduler = scheduler
        self.follower = Follower(view)
        self.interruptions = interruptions
        self.patience = patience
        self.wishes = wishes
        self.id = randomness.token_hex(5)
        self.stop = asyncio.Event()
        self.cancelled = ""
        self.broken = False
        view.gauge = lambda: scheduler.registry.transfers(self.id)

    async def run(self, pipeline: Pipeline, secrets: Mapping[str, str], engine: Engine, endpoint: Endpoint) -> ExitCode:
        """Run to the end, whichever it is."""
        await self.scheduler.dispatcher.submit(self.id, pipeline, secrets)
        async with contextlib.AsyncExitStack() as stack:
            agent = asyncio.create_task(engine(endpoint, self.stop), name="engine")
            stack.push_async_callback(end, agent)
            shown = asyncio.create_task(self.show(), name="console")
            stack.push_async_callback(end, shown)
            insisted = asyncio.create_task(self.interruptions.second.wait(), name="interrupted again")
            stack.push_async_callback(end, insisted)
            ended = await self.attend(shown, agent, insisted)
            self.stop.set()
            if not insisted.done() and not agent.done():
                await asyncio.wait({agent, insisted}, timeout=self.patience.stop, return_when=asyncio.FIRST_COMPLETED)
            if insisted.done():
                return await self.leave_at_once(agent)
            failed = await self.engine_failed(agent)
            if ended:
                await self.finish()
            return self.code(ended=ended, failed=failed)

    async def show(self) -> None:
        """Show the pipeline to its end; when nobody can read it any more, cancel it and go on silently."""
        registry = self.scheduler.registry
        try:
            await self.follower.follow(registry.watch(self.id))
        except OutputClosed as error:
            self.broken = True
            await self.cancel(str(error))
            await self.follower.follow(registry.watch(self.id, self.follower.position))

    async def attend(self, shown: asyncio.Task[None], agent: asyncio.Task[None], insisted: asyncio.Task[bool]) -> bool:
        """Wait for the end of the pipeline; False when it cannot be had."""
        first = asyncio.create_task(self.interruptions.first.wait(), name="interrupted")
        ready = asyncio.create_task(self.scheduler.dispatcher.agent_ready.wait(), name="agent ready")
        try:
            return await self.attend_all(shown, agent, insisted, first, ready)
        finally:
            await end(first)
            await end(ready)

    async def attend_all(
        self,
        shown: asyncio.Task[None],
        agent: asyncio.Task[None],
        insisted: asyncio.Task[bool],
        first: asyncio.Task[bool],
        ready: asyncio.Task[bool],
    ) -> bool:
        """Wait, one thing after the other, until the pipeline has ended or cannot end."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        over = begun + self.patience.timeout if self.patience.timeout is not None else None
        unready: float | None = begun + self.patience.start
        while True:
            pending = {task for task in (shown, agent, insisted, first, ready) if not task.done()}
            deadlines = [each for each in (over, unready) if each is not None]
            wait = max(0.0, min(deadlines) - loop.time()) if deadlines else None
            await asyncio.wait(pending, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            if shown.done():
                return await self.shown_all(shown)
            if insisted.done() or agent.done():
                return False
            if ready.done():
                unready = None
            elif unready is not None and loop.time() >= unready and not self.cancelled:
                await self.follower.tell(self.why_not_ready())
                return False
            late = over is not None and loop.time() >= over
            if late and self.cancelled:
                await self.follower.tell(
                    f"the pipeline did not end within {self.patience.cancel:g} s after it was cancelled"
                )
                return False
            if (first.done() or late) and not self.cancelled:
                timeout = f"the time of {self.patience.timeout:g} s is over" if self.patience.timeout else ""
                await self.cancel("interrupted" if first.done() else timeout)
                over = loop.time() + self.patience.cancel

    async def shown_all(self, shown: asyncio.Task[None]) -> bool:
        """Say why the pipeline could not be followed to its end, if so."""
        try:
            shown.result()
        except AgentError as error:
            await self.follower.tell(str(error))
            return False
        return True

    def why_not_ready(self) -> str:
        """Say why no action could be begun."""
        for stream in self.scheduler.dispatcher.agents.streams.values():
            if stream.health is not None:
                why = stream.health.message or stream.health.status.value
                return f"the agent is not ready: {why}{self.wishes.no_cluster}"
        return f"the agent did not register within {self.patience.start:g} s"

    async def cancel(self, message: str) -> None:
        """End every action."""
        self.cancelled = message
        self.scheduler.dispatcher.cancel(self.id, message)
        again = "; once more to leave at once" if self.interruptions.first.is_set() else ""
        await self.follower.tell(f"{message}: cancelling and cleaning up{again}")

    async def leave_at_once(self, agent: asyncio.Task[None]) -> ExitCode:
        """Let the engine ask for the deletion of what it made, and wait for nothing."""
        await self.follower.tell(
            f"left at once, what was made is being deleted; `{self.wishes.cleanup}` removes what may be left"
        )
        agent.cancel()
        await asyncio.wait({agent}, timeout=AT_ONCE)
        if not agent.done():
            sys.stdout.flush()
            os._exit(ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED

    async def engine_failed(self, agent: asyncio.Task[None]) -> bool:
        """Say what ended the engine, if it was not we."""
        if not agent.done():
            await self.follower.tell(f"the agent did not end within {self.patience.stop:g} s")
            return True
        if agent.cancelled():
            return True
        error = agent.exception()
        if error is None:
            return False
        if not isinstance(error, AgentError):
            log.error("the agent failed", exc_info=error)
        hint = self.wishes.no_cluster if isinstance(error, SettingsError) else ""
        await self.follower.tell(f"{error}{hint}" if hint else f"the agent failed: {error}")
        return True

    async def finish(self) -> None:
        """Show how it went, here and in the files that were asked for."""
        report = self.follower.report
        # As it was given: a person knows where that is.
        report.folder = str(self.wishes.artifacts or "")
        for file in self.wishes.reports:
            await asyncio.to_thread(report_files.write, report, file)
        try:
            await self.follower.close()
        except OutputClosed as error:
            self.broken = True
            say(str(error))
        if self.wishes.kept is not None:
            for action in report.actions.values():
                if action.environment and action.outcome and action.outcome.result.value != "cancelled":
                    say("\n  ".join([f"kept: the environment of {action.name}", *self.wishes.kept(action.environment)]))
        if self.interruptions.first.is_set():
            say("cancelled: nothing is left in the cluster")

    def code(self, *, ended: bool, failed: bool) -> ExitCode:
        """Say how it went."""
        if self.interruptions.first.is_set() or self.broken:
            return ExitCode.INTERRUPTED
        if not ended or failed:
            return ExitCode.INFRASTRUCTURE
        return self.follower.report.exit_code
