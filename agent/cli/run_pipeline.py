"""Run a pipeline from a file to its outcomes, with a scheduler in memory and an agent in the same process.

However a run ends, this module cancels its actions, asks the agent to stop, and waits for the agent. So nothing is left
in the cluster. Only a second interruption exits without waiting.
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

from agent.aio import cancel_and_wait, first_of
from agent.cli.run_states import IGNORED, Event, State
from agent.console.follower import Follower, Interruptions, OutputClosed, ViewFailed, print_notice
from agent.console.open_view import open_view
from agent.console.reports import report_files
from agent.console.reports.run_report import ExitCode
from agent.console.view import Moving
from agent.domain.errors import AgentError, NoCluster, SettingsError
from agent.domain.outcome import Result
from agent.local_scheduler.local_service import Access
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
# Seconds until the process exits after a second interruption, if the agent has not sent its delete requests by then.
EXIT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a run's scheduler. The engine, which runs the actions, connects to this address.

    The scheduler listens on this machine, in plaintext. `token_file` holds a token that only this run knows. While the
    engine is inside the context manager `screen`, the terminal is free for an interactive shell. `show_moved` gets the
    progress of what the engine copies itself. See `Moving.show`.
    """

    address: str
    token_file: Path
    screen: Callable[[], AbstractAsyncContextManager[None]]
    show_moved: Callable[[str, str, int, int], None]


if TYPE_CHECKING:
    Engine = Callable[[Endpoint, asyncio.Event], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Time limits of a run, in seconds.

    `start`: until the agent is ready. `cancel`: until a cancelled pipeline has ended. `stop`: until the engine has
    stopped. `pipeline`: until the pipeline is cancelled. None: no limit.
    """

    start: float = 30.0
    cancel: float = 300.0
    stop: float = 300.0
    pipeline: float | None = None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the user wants a run to show and to keep, and hints for the run's messages.

    `kept_commands` returns the commands that inspect and delete an environment that was kept. `cleanup_command` deletes
    everything that a run can leave in the cluster. `no_cluster_hint` is added to errors about a missing cluster, and
    the result of `no_answer_hint` to errors about a cluster that does not answer.
    """

    artifacts: Path | None = None
    output: str = "auto"
    timestamps: bool = False
    quiet: bool = False
    reports: Sequence[Path] = ()
    kept_commands: Callable[[str], Sequence[str]] | None = None
    cleanup_command: str = "sealci-agent cleanup"
    no_cluster_hint: str = ""
    no_answer_hint: Callable[[], str] = str


async def run_pipeline(
    pipeline: Pipeline,
    *,
    engine: Engine,
    secrets: Mapping[str, str],
    options: RunOptions | None = None,
    timeouts: Timeouts | None = None,
    interruptions: Interruptions | None = None,
    stream: TextIO | None = None,
) -> ExitCode:
    """Run a pipeline and show it on `stream`, by default standard output.

    `engine` runs an agent. It gets the scheduler's endpoint and an event, and runs until the event is set. Then it ends
    its sessions and returns. If `engine` raises an error, the agent could not run.
    """
    options = options or RunOptions()
    view = open_view(options.output, stream or sys.stdout, quiet=options.quiet, timestamps=options.timestamps)
    own = Interruptions()
    with contextlib.ExitStack() as stack:
        if interruptions is None:
            stack.enter_context(own.count_signals())
        private = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealci-run-")))
        token_file = private / "token"
        token_file.touch(0o600)
        token_file.write_text(randomness.token_urlsafe(32), encoding="utf-8")
        try:
            async with open_scheduler(
                "127.0.0.1:0", options.artifacts or private / "files", Access(token_file), OPTIONS, durable=False
            ) as scheduler:
                driver = RunDriver(scheduler, view, interruptions or own, timeouts or Timeouts(), options)
                screen = driver.follower.exclusive_screen
                endpoint = Endpoint(scheduler.address, token_file, screen, driver.moving.show)
                return await driver.run(pipeline, secrets, engine, endpoint)
        except AgentError as error:
            print_notice(str(error))
            return ExitCode.INFRASTRUCTURE


class RunDriver:
    """Drives one run: waits for the pipeline, the engine, the timeouts and the user, and ends all in order."""

    def __init__(
        self, scheduler: Scheduler, view: View, interruptions: Interruptions, timeouts: Timeouts, options: RunOptions
    ) -> None:
        self.scheduler = scheduler
        self.follower = Follower(view)
        self.interruptions = interruptions
        self.timeouts = timeouts
        self.options = options
        self.id = randomness.token_hex(5)
        self.stop = asyncio.Event()
        self.output_closed = asyncio.Event()
        self.output_error = ""
        self.view_failed = False
        self.state = State.STARTING
        # Deadlines by the event loop's clock. Infinity means no deadline.
        self.start_deadline = self.deadline = float("inf")
        self.moving = Moving()
        view.transfers = lambda: self.moving.transfers | scheduler.registry.transfers(self.id)

    async def run(self, pipeline: Pipeline, secrets: Mapping[str, str], engine: Engine, endpoint: Endpoint) -> ExitCode:
        """Run the pipeline and the engine until both have ended, and show the result."""
        await self.scheduler.dispatcher.submit(self.id, pipeline, secrets)
        agent = asyncio.create_task(engine(endpoint, self.stop), name="engine")
        console = asyncio.create_task(self.show(), name="console")
        try:
            ended = await self.wait_for_end(console, agent)
            if not ended and self.scheduler.dispatcher.agent_ready.is_set():
                # Cancel all actions. Otherwise the agent would wait for the end of its actions before it stops.
                with contextlib.suppress(AgentError):
                    self.scheduler.dispatcher.cancel(self.id, "the run cannot go on")
            self.stop.set()
            insisted = self.interruptions.second
            if not insisted.is_set() and not agent.done():
                await first_of(agent, insisted, timeout=self.timeouts.stop)
            if insisted.is_set():
                return await self.exit_at_once(agent)
            failed = await self.report_engine_failure(agent)
            if ended:
                await self.show_result()
            return self.exit_code(ended=ended, failed=failed)
        finally:
            await cancel_and_wait(console, agent, ignore_errors=True)

    async def show(self) -> None:
        """Show the pipeline to its end. If the output is closed, continue without output."""
        registry = self.scheduler.registry
        try:
            await self.follower.follow(registry.watch(self.id))
        except OutputClosed as error:
            self.output_error = str(error)
            self.view_failed = isinstance(error, ViewFailed)
            self.output_closed.set()
            await self.follower.follow(registry.watch(self.id, self.follower.position))

    async def wait_for_end(self, console: asyncio.Task[None], agent: asyncio.Task[None]) -> bool:
        """Wait until the pipeline has ended. Returns False if it cannot end, or if the user wants to exit at once."""
        now = asyncio.get_running_loop().time()
        self.start_deadline = now + self.timeouts.start
        if self.timeouts.pipeline is not None:
            self.deadline = now + self.timeouts.pipeline
        while True:
            event = await self.next_event(console, agent)
            match self.state, event:
                case _, Event.PIPELINE_ENDED:
                    return await self.followed_to_end(console)
                case _, Event.INTERRUPTED_AGAIN | Event.ENGINE_ENDED:
                    return False
                case State.STARTING, Event.AGENT_READY:
                    self.state = State.RUNNING
                case State.STARTING, Event.START_TIMEOUT:
                    await self.follower.notify(self.why_not_ready())
                    return False
                case State.CANCELLING, Event.TIMEOUT:
                    limit = f"{self.timeouts.cancel:g} s"
                    await self.follower.notify(f"the pipeline did not end within {limit} after it was cancelled")
                    return False
                case _, Event.INTERRUPTED:
                    await self.cancel("interrupted")
                case _, Event.OUTPUT_CLOSED:
                    await self.cancel(self.output_error)
                case _, Event.TIMEOUT:
                    await self.cancel(f"the time of {self.timeouts.pipeline:g} s is over")
                case _:
                    raise AssertionError(f"{event} in state {self.state}")

    async def next_event(self, console: asyncio.Task[None], agent: asyncio.Task[None]) -> Event:
        """Wait for the next event that matters in the current state."""
        sources: dict[Event, asyncio.Task[None] | asyncio.Event] = {
            Event.PIPELINE_ENDED: console,
            Event.INTERRUPTED_AGAIN: self.interruptions.second,
            Event.ENGINE_ENDED: agent,
            Event.AGENT_READY: self.scheduler.dispatcher.agent_ready,
            Event.INTERRUPTED: self.interruptions.first,
            Event.OUTPUT_CLOSED: self.output_closed,
        }
        sources = {event: source for event, source in sources.items() if event not in IGNORED[self.state]}
        loop = asyncio.get_running_loop()
        while True:
            start_deadline = self.start_deadline if self.state is State.STARTING else float("inf")
            nearest = min(start_deadline, self.deadline)
            timeout = None if nearest == float("inf") else max(0.0, nearest - loop.time())
            await first_of(*sources.values(), timeout=timeout)
            for event, source in sources.items():
                if source.done() if isinstance(source, asyncio.Task) else source.is_set():
                    return event
            if loop.time() >= start_deadline:
                return Event.START_TIMEOUT
            if loop.time() >= self.deadline:
                return Event.TIMEOUT

    async def followed_to_end(self, console: asyncio.Task[None]) -> bool:
        """Return whether the console followed the pipeline to its end. If not, print the reason."""
        try:
            console.result()
        except AgentError as error:
            await self.follower.notify(str(error))
            return False
        except Exception as error:
            log.info("the console failed", exc_info=error)
            await self.follower.notify(f"the console failed: {type(error).__name__}: {error}")
            return False
        return True

    def why_not_ready(self) -> str:
        """Return why the agent takes no actions."""
        for stream in self.scheduler.dispatcher.agents.streams.values():
            if stream.health is not None:
                why = stream.health.message or stream.health.status.value
                return f"the agent is not ready: {why}{self.options.no_answer_hint()}"
        return f"the agent did not register within {self.timeouts.start:g} s"

    async def cancel(self, message: str) -> None:
        """Cancel every action, and show `message` as the cause.

        The run then waits for the end of the pipeline, at most `Timeouts.cancel` seconds. A second Ctrl-C ends the
        wait.
        """
        self.scheduler.dispatcher.cancel(self.id, message)
        hint = ". Press Ctrl-C again to exit at once" if self.interruptions.first.is_set() else ""
        await self.follower.notify(f"{message}: cancelling and cleaning up{hint}")
        self.state = State.CANCELLING
        self.deadline = asyncio.get_running_loop().time() + self.timeouts.cancel

    async def exit_at_once(self, agent: asyncio.Task[None]) -> ExitCode:
        """Give the engine `EXIT_SECONDS` to send its delete requests, then exit without waiting for the answers."""
        await self.follower.notify(
            f"exiting at once, while pods are being deleted. `{self.options.cleanup_command}` deletes what may be left"
        )
        agent.cancel()
        await asyncio.wait({agent}, timeout=EXIT_SECONDS)
        if not agent.done():
            # `os._exit` exits at once. An ordinary exit would wait for the engine.
            sys.stdout.flush()
            os._exit(ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED

    async def report_engine_failure(self, agent: asyncio.Task[None]) -> bool:
        """Return whether the engine failed or did not stop in time, and print why."""
        if not agent.done():
            await self.follower.notify(f"the agent did not end within {self.timeouts.stop:g} s")
            return True
        if agent.cancelled():
            return True
        error = agent.exception()
        if error is None:
            return False
        if not isinstance(error, AgentError):
            # The traceback is logged for `--verbose` only. Without it, the user gets one sentence.
            log.info("the agent failed", exc_info=error)
        hint = self.options.no_cluster_hint if isinstance(error, NoCluster) else ""
        kind = "" if isinstance(error, AgentError | OSError) else f"{type(error).__name__}: "
        text = f"{error}{hint}" if isinstance(error, SettingsError) else f"the agent failed: {kind}{error}"
        await self.follower.notify(text)
        return True

    async def show_result(self) -> None:
        """Show the result on the console, and write the report files."""
        report = self.follower.report
        # The report shows the path as the user typed it, not the scheduler's absolute path.
        report.folder = str(self.options.artifacts or "")
        for file in self.options.reports:
            await asyncio.to_thread(report_files.write, report, file)
        try:
            await self.follower.close()
        except OutputClosed as error:
            self.view_failed = isinstance(error, ViewFailed)
            self.output_closed.set()
            print_notice(str(error))
        if self.options.kept_commands is not None:
            for action in report.actions.values():
                if action.environment and action.outcome and action.outcome.result is not Result.CANCELLED:
                    commands = self.options.kept_commands(action.environment)
                    print_notice("\n".join([f"kept: the environment of {action.name}", *commands]))
        if self.interruptions.first.is_set():
            print_notice("cancelled: nothing is left in the cluster")

    def exit_code(self, *, ended: bool, failed: bool) -> ExitCode:
        """Return the exit code. `ended`: the pipeline has ended. `failed`: the engine failed."""
        if self.interruptions.first.is_set() or (self.output_closed.is_set() and not self.view_failed):
            return ExitCode.INTERRUPTED
        if self.view_failed:
            return ExitCode.INFRASTRUCTURE
        if not ended or failed:
            return ExitCode.INFRASTRUCTURE
        return self.follower.report.exit_code
