"""All sessions of this agent: which actions it accepts, which sessions it ends, and how many slots are in use.

The registry lives as long as the agent. The task that reads the scheduler's stream calls the methods for requests, so
these methods are synchronous and quick. Each session runs in a task of its own in the application's task group, and
an unexpected error in one session ends no other session. The number of existing sessions is the number of used slots.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from agent.domain.errors import ActionFailed, Reason, Rejection
from agent.domain.events import Rejected
from agent.domain.outcome import Outcome, Result
from agent.execution.admission import admission_of
from agent.execution.lifecycle import run_action, run_adopted
from agent.execution.reporter import failed_admission, report_without_session
from agent.execution.session import TIMINGS, Session, StopRequest
from agent.execution.stats import count_outcome, count_stages
from agent.telemetry.metrics import SESSION_STAGES
from agent.telemetry.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from agent.domain.actions import Action, Cancel, Key
    from agent.domain.events import Event
    from agent.domain.session_state import Resume
    from agent.execution.ports import Backend, Environment, EventSink
    from agent.execution.timings import SessionTimings
    from agent.settings import Settings
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

AttemptKey = tuple[str, int]
NO_TRACES = Traces()


def ignore(*_: object) -> None:
    """Do nothing. The default for callbacks about changes of the sessions."""


class SessionRegistry:
    """Accepts actions and owns their sessions until their environments are gone. There is one per agent.

    `sessions` holds each session by its attempt. `attempt_tasks` also holds tasks that only report why an action got no
    session. `on_change` is called when the number of sessions may have changed, `on_end` with each session that ended
    with an outcome.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        sink: EventSink,
        metrics: Metrics,
        task_group: asyncio.TaskGroup,
        traces: Traces = NO_TRACES,
        *,
        on_change: Callable[[], None] = ignore,
        on_end: Callable[[Session], None] = ignore,
        timings: SessionTimings = TIMINGS,
    ) -> None:
        self.settings = settings
        self.admit = admission_of(settings)
        self.backend = backend
        self.sink = sink
        self.metrics = metrics
        self.task_group = task_group
        self.traces = traces
        self.on_change = on_change
        self.on_end = on_end
        self.timings = timings
        self.sessions: dict[AttemptKey, Session] = {}
        self.attempt_tasks: dict[AttemptKey, asyncio.Task[None]] = {}
        self.changed = asyncio.Event()
        self.draining = False
        self.finished = 0
        metrics.slots.set(settings.agent.slots)
        metrics.slots_available.set(settings.agent.slots)
        for stage in SESSION_STAGES:
            metrics.actions_running.labels(stage).set_function(partial(self.count_in, stage))

    # ---- slots

    @property
    def used(self) -> int:
        """Return the number of slots in use, including sessions that are being cleaned up."""
        return len(self.sessions)

    def count_in(self, stage: str) -> int:
        """Return the number of sessions in a stage, for the metrics."""
        return sum(session.stage_label == stage for session in self.sessions.values())

    def refusal(self) -> Rejected | None:
        """Return why the agent cannot accept an action now, None if it can."""
        if self.draining:
            return Rejected(Rejection.DRAINING, "the agent is leaving")
        if self.used >= self.settings.agent.slots:
            return Rejected(Rejection.NO_SLOT, f"all {self.settings.agent.slots} slots are in use")
        if not self.backend.reachable:
            return Rejected(Rejection.CLUSTER_UNAVAILABLE, "the cluster does not answer")
        return None

    def sessions_changed(self) -> None:
        """Update the metrics, call `on_change`, and wake the tasks that wait in `idle`."""
        self.metrics.slots_used.set(self.used)
        free = 0 if self.draining else max(0, self.settings.agent.slots - self.used)
        self.metrics.slots_available.set(free)
        self.changed.set()
        self.on_change()

    # ---- the start of sessions

    def action(self, action: Action) -> None:
        """Start a session for an action, or report why the agent starts none. A repeated action changes nothing."""
        attempt = action.key.attempt_key
        if attempt in self.attempt_tasks:
            log.info("the action is known already", action=action.key.action_id, attempt=action.key.attempt)
            return
        self.metrics.actions_received.inc()
        if why := self.refusal():
            self.metrics.actions_rejected.labels(why.why.value).inc()
            self.report_only(action.key, why)
            return
        try:
            timeout = self.admit(action)
        except ActionFailed as failure:
            self.action_failed(action.key, failure)
            return
        trace = self.traces.begin(action)
        action = replace(action, traceparent=trace.traceparent)
        session = Session(action, self.sink.open(action.key), timeout, trace, timings=self.timings)
        self.start_session(session, run_action(session, self.backend, self.settings))

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        """Report an action that cannot be run: first as accepted, then as failed in stage ADMISSION."""
        count_outcome(self.metrics, Outcome(Result.FAILED, failure.stage, failure.reason), 0.0)
        self.report_only(key, *failed_admission(failure))

    def adopt(self, action: Action, environment: Environment) -> bool:
        """Continue an adopted session as soon as the scheduler sends its resume point. An adoption needs no free slot.

        Returns False while an older session of the same attempt is still ending in this agent. The caller then tries
        again.
        """
        attempt = action.key.attempt_key
        if attempt in self.attempt_tasks:
            log.info("an older session of the adopted attempt still ends here", action=action.key.action_id)
            environment.release()
            return False
        trace = self.traces.begin(action, adopted=True)
        outlet = self.sink.open(action.key, adopted=True)
        timeout = action.timeout or 0.0
        session = Session(action, outlet, timeout, trace, environment=environment, timings=self.timings)
        self.start_session(session, self.run_when_resumed(session, environment))
        return True

    async def run_when_resumed(self, session: Session, environment: Environment) -> None:
        """Wait for the resume point, then run the session. Remove the environment if the session is discarded first."""
        assert session.progress.resume_point is not None  # noqa: S101 - the session is adopted
        try:
            resume = await session.progress.resume_point
        except asyncio.CancelledError:
            await environment.remove()
            raise
        await run_adopted(session, environment, resume, self.settings)

    # ---- requests of the scheduler

    def resume(self, resume: Resume) -> None:
        """Give a resume point to its session.

        A session that was not adopted uses only the stop request in the resume point.
        """
        session = self.sessions.get(resume.key.attempt_key)
        if session is not None and not session.progress.resume(resume) and resume.cancel is not None:
            session.cancel(resume.cancel)

    def reset(self, key: Key, resume: Resume) -> bool:
        """Report a session again to a scheduler that lost its state. Returns False if there is no such session."""
        session = self.sessions.get(key.attempt_key)
        if session is None or session.key != key:
            return False
        session.progress.request_reset(resume)
        return True

    def cancel(self, attempt: AttemptKey, cancel: Cancel) -> None:
        """Stop the session of an attempt. Without such a session, do nothing, because the session has ended already."""
        session = self.sessions.get(attempt)
        if session is not None:
            session.cancel(cancel)

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        """End a session that the scheduler asks to discard. If another agent has claimed the pod, the pod stays."""
        session = self.sessions.get(key.attempt_key)
        # After a broken stream, the scheduler possibly asks to discard a session that has finished and only cleans up.
        # The clean-up then continues.
        if session is None or session.key.claim > key.claim or session.progress.finished:
            return
        log.warning("the scheduler discards a session", action=key.action_id, message=message, other=claimed_by_other)
        if claimed_by_other:
            self.disown(session)
        else:
            self.end(session)

    # ---- the end of sessions

    def superseded(self, attempt: AttemptKey) -> None:
        """Drop a session that another agent has adopted. Its environment is not touched."""
        session = self.sessions.get(attempt)
        if session is not None:
            log.warning("another agent has adopted a session of this agent", action=attempt[0], attempt=attempt[1])
            self.metrics.superseded.inc()
            self.disown(session)

    def hand_over(self) -> int:
        """End every session in this agent, and leave the running environments to the other agents of the pool.

        Returns the number of sessions.
        """
        sessions = [session for session in self.sessions.values() if not session.progress.finished]
        for session in sessions:
            self.metrics.handed_over.inc()
            self.disown(session)
        return len(sessions)

    def disown(self, session: Session) -> None:
        """End a session in this agent, because another agent continues it."""
        if session.environment is not None:
            session.environment.disown()
        self.end(session)

    def end(self, session: Session) -> None:
        """Cancel the task of a session, but let the task start first: a task that never started does not clean up."""
        session.progress.finish()
        asyncio.get_running_loop().call_soon(self.attempt_tasks[session.key.attempt_key].cancel)

    def drain(self, message: str) -> None:
        """Accept no more actions. `message` is the cause, for the log."""
        if not self.draining:
            log.info("draining", message=message, running=self.used)
            self.draining = True
            self.metrics.draining.set(1)
            self.sessions_changed()

    def cancel_all(self, message: str) -> None:
        """Stop every session for the cause `message`. Disown adopted sessions that wait for their resume point."""
        for session in list(self.sessions.values()):
            if session.progress.awaits_resume and not session.progress.finished:
                self.disown(session)
            else:
                session.request_stop(StopRequest(Reason.CANCELLED, message, None))

    def disown_all(self) -> None:
        """Disown every environment, because the API server denies access to this agent.

        An environment that is being removed is disowned too.
        """
        for session in self.sessions.values():
            if session.environment is not None:
                session.environment.disown()

    def abandon(self) -> None:
        """Cancel the tasks of all attempts, including tasks that only report why an action got no session."""
        for task in self.attempt_tasks.values():
            task.cancel()

    async def idle(self) -> None:
        """Wait until every task of an attempt has ended."""
        while self.attempt_tasks:
            self.changed.clear()
            await self.changed.wait()

    # ---- tasks of sessions

    def start_session(self, session: Session, work: Coroutine[Any, Any, None]) -> None:
        attempt = session.key.attempt_key
        self.sessions[attempt] = session
        self.start(attempt, self.run_session(session, work))

    def report_only(self, key: Key, *events: Event) -> None:
        """Report `events` for an attempt that gets no session. The attempt has no other events."""
        self.start(key.attempt_key, self.open_and_report(key, events))

    async def open_and_report(self, key: Key, events: tuple[Event, ...]) -> None:
        await report_without_session(self.sink.open(key), events)

    def start(self, attempt: AttemptKey, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as the task of an attempt. A repeated action for the attempt is ignored until the task ends."""
        task = self.task_group.create_task(work, name=f"session {attempt[0]}/{attempt[1]}")
        self.attempt_tasks[attempt] = task
        self.sessions_changed()
        task.add_done_callback(lambda _: self.forget(attempt))

    def forget(self, attempt: AttemptKey) -> None:
        """Free the slot of an attempt whose task has ended."""
        self.attempt_tasks.pop(attempt, None)
        self.sessions.pop(attempt, None)
        self.sessions_changed()

    async def run_session(self, session: Session, work: Coroutine[Any, Any, None]) -> None:
        """Run a session to its end.

        An unexpected error becomes the outcome of the session and ends no other session.
        """
        ids: dict[str, Any] = {"action": session.key.action_id, "attempt": session.key.attempt}
        if session.reporter.trace.trace_id:
            ids["trace_id"] = session.reporter.trace.trace_id
        with structlog.contextvars.bound_contextvars(**ids):
            try:
                await work
            except Exception as error:
                self.metrics.internal_errors.labels("session").inc()
                log.exception("a session failed because of a fault in the agent")
                await session.report_fault(error)
            finally:
                session.reporter.close()
                self.count(session)

    def count(self, session: Session) -> None:
        """Count and log a session that has ended.

        A session without an outcome continues in another agent, or was discarded.
        """
        outcome = session.progress.outcome
        if outcome is None:
            log.info("session left without an outcome", stage=session.reporter.stage.value)
            return
        self.finished += 1
        self.on_end(session)
        seconds = time.monotonic() - session.began
        count_outcome(self.metrics, outcome, seconds)
        count_stages(self.metrics, session.reporter.stage_seconds)
        session.add_to(self.metrics)
        log.info(
            "session ended",
            outcome=outcome.result.value,
            stage=outcome.stage.value,
            reason=outcome.reason.value if outcome.reason else None,
            exit_code=outcome.exit_code,
            seconds=round(seconds, 3),
        )
