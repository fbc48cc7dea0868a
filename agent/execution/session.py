"""One attempt of one action on this agent, from the arrival of the action until its environment is gone.

A `Session` joins the parts of an attempt. `progress` is how far the attempt has come, `reporter` sends its events, and
`stats` counts for the metrics. The session itself holds the stop request. `lifecycle` runs the steps of the session,
and `registry` owns the session.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from agent.aio import run_until_set
from agent.domain.errors import Reason, Stage
from agent.domain.outcome import Outcome, Result
from agent.execution.progress import SessionProgress
from agent.execution.reporter import EventReporter
from agent.execution.services.reports import ServiceReports
from agent.execution.stats import SessionStats
from agent.execution.timings import SessionTimings
from agent.telemetry.traces import Trace

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from agent.domain.actions import Action, Cancel
    from agent.domain.errors import ActionFailed
    from agent.domain.session_state import Resume
    from agent.execution.ports import Environment, SessionSink
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

T = TypeVar("T")

TIMINGS = SessionTimings()


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Why a session must end early.

    `grace` is the number of seconds between SIGTERM and SIGKILL, None for the policy's default.
    """

    reason: Reason
    message: str
    grace: float | None = None


class Interrupted(Exception):
    """A stop request ended the work. Raised and caught inside the session's own task only."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(request.message)
        self.request = request


class Session:
    """One attempt of an action. Owned by the `SessionRegistry`, lives until the environment is gone.

    `timeout` is the number of seconds that the commands may run. An adopted session (with an `environment`) starts
    at the resume point of its former agent, which the scheduler sent.
    """

    def __init__(
        self,
        action: Action,
        outlet: SessionSink,
        timeout: float,
        trace: Trace | None = None,
        *,
        environment: Environment | None = None,
        timings: SessionTimings = TIMINGS,
    ) -> None:
        self.action = action
        self.key = action.key
        self.timeout = timeout
        self.timings = timings
        self.began = time.monotonic()
        self.environment = environment
        self.progress = SessionProgress(adopted=environment is not None)
        self.reporter = EventReporter(outlet, action.secrets, trace or Trace(action.traceparent))
        self.stats = SessionStats()
        self.services = ServiceReports(action.services, self.reporter)
        self.followed_services: set[str] = set()  # services whose log is sent live
        # Whether a cache may have to be saved. An adopted session does not know, so it asks the pod.
        self.save_caches = True
        self.stop_request: StopRequest | None = None
        self.stop_requested = asyncio.Event()

    def attach(self, environment: Environment) -> None:
        """Store the environment, so that the registry can disown it."""
        self.environment = environment

    def resume(self, resume: Resume) -> None:
        """Continue at the resume point: the last event that the scheduler has stored from the former agent."""
        self.action = replace(self.action, secrets=dict(resume.secrets), inputs=(), caches=())
        if (whole := resume.action) is not None:
            self.action = replace(self.action, inputs=whole.inputs, caches=whole.caches, cache_scope=whole.cache_scope)
        self.progress.go_to(resume)
        self.reporter.resume(resume.stage, self.action.secrets)

    @property
    def stage_label(self) -> str:
        """Return the stage as the metrics label it."""
        if self.progress.cleaning_up:
            return "cleanup"
        stage = self.reporter.stage
        return "setup" if stage is Stage.ADMISSION else stage.value

    @property
    def awaits_files(self) -> bool:
        """Return whether the environment waits for caches or inputs, as far as this agent knows."""
        begun = self.progress.command or self.reporter.stage not in (Stage.ADMISSION, Stage.SETUP)
        return self.action.awaits_files and not self.progress.inputs_copied and not begun

    def add_to(self, metrics: Metrics) -> None:
        """Count what happened in this session, at its end."""
        self.stats.add_to(metrics)
        self.services.count(metrics)

    # ---- stop requests

    def request_stop(self, request: StopRequest) -> None:
        """Ask the session to end. Later requests, and requests after the outcome is decided, have no effect."""
        if self.stop_request is None and self.progress.outcome is None:
            self.stop_request = request
            self.stop_requested.set()

    def cancel(self, cancel: Cancel) -> None:
        """Ask the session to end because the scheduler cancels the action."""
        self.request_stop(StopRequest(Reason.CANCELLED, cancel.message or "cancelled by request", cancel.grace))

    def clear_stop_request(self) -> None:
        """Drop the stop request that has ended the previous step, so that only a new request ends the next step."""
        self.stop_request = None
        self.stop_requested.clear()

    async def run_until_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` and return its result, unless a stop request comes first.

        Raises:
            Interrupted: there is a stop request. `work` has been cancelled and has ended.
        """
        name = f"{self.reporter.stage.value} of {self.key.action_id}"
        task = await run_until_set(work, self.stop_requested, name=name)
        if task is None:
            assert self.stop_request is not None  # noqa: S101 - set together with `stop_requested`
            raise Interrupted(self.stop_request)
        return task.result()

    # ---- the scheduler's state loss

    async def run_until_reset(self, reporting: Coroutine[Any, Any, None]) -> bool:
        """Run `reporting` to its end. Returns False if a state loss of the scheduler has ended `reporting` early."""
        name = f"session {self.key.action_id}/{self.key.attempt}: reporting"
        task = await run_until_set(reporting, self.progress.reset_requested, name=name)
        if task is None:
            return False
        task.result()
        return True

    def restart_reporting(self) -> None:
        """Go back to the last event that the scheduler still has. The environment and the outcome do not change."""
        reset = self.progress.take_reset()
        self.reporter.restart(reset.seq)
        self.services.reported.clear()
        if reset.cancel is not None:
            self.cancel(reset.cancel)

    # ---- the outcome of the session

    async def finish(self, outcome: Outcome) -> None:
        """Decide the outcome, report it, and wait until the scheduler has stored everything.

        An outcome that was decided before is reported instead of `outcome`.
        """
        decided = self.progress.decide(self.reporter.mask_outcome(outcome))
        await self.reporter.finish(decided)
        self.progress.finish()

    async def resend_outcome(self) -> None:
        """Resend the outcome if the scheduler lost its state during clean-up. The log cannot be resent."""
        while self.progress.reset_requested.is_set() and self.progress.outcome is not None:
            self.restart_reporting()
            if not self.progress.stored_seq:
                await self.reporter.accept("")
            await self.reporter.write_log(
                "[the scheduler has lost the log of this action; its environment is gone, so the log cannot be resent]"
            )
            await self.run_until_reset(self.finish(self.progress.outcome))

    async def report_fault(self, error: Exception) -> None:
        """Report that a fault in the agent ended the session, unless its outcome is decided."""
        if self.progress.outcome is not None:
            return
        message = f"{error!r}"[:1000]
        try:
            await self.finish(Outcome(Result.FAILED, self.reporter.stage, Reason.INTERNAL, message=message))
        except Exception:
            # The fault may be in the code that sends events to the scheduler. The session must still end and clean up.
            log.exception("the failure of a session could not be reported")

    def failure_outcome(self, failure: ActionFailed) -> Outcome:
        command = self.progress.command
        return Outcome(Result.FAILED, failure.stage, failure.reason, None, command, failure.message)

    def stopped_outcome(self, request: StopRequest, exit_code: int | None = None) -> Outcome:
        """Return the outcome of a session that ended early. `exit_code` is that of the commands, if known."""
        result = Result.CANCELLED if request.reason is Reason.CANCELLED else Result.FAILED
        stage, command = self.reporter.stage, self.progress.command
        return Outcome(result, stage, request.reason, exit_code, command, request.message)
