"""The sessions of this agent: who is let in, who is asked to leave, and how much room there is.

Lives as long as the agent. Handlers are synchronous and quick, because the reader of the stream calls them; each
session runs in a task of its own inside the application's task group, and its worst failure is its own. The slots in
use are counted from the sessions that exist, never by adding and subtracting.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from agent.domain.errors import ActionFailed, Reason, Rejection, Stage
from agent.domain.events import Accepted, Finished, LogChunk, Rejected, Source
from agent.domain.outcome import Outcome, Result
from agent.execution.admission import admit
from agent.execution.lifecycle import go_on, run_action
from agent.execution.session import Session, Wish
from agent.telemetry.metrics import LIVES, fault
from agent.telemetry.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from agent.domain.actions import Action, Cancel, Key
    from agent.domain.events import Event
    from agent.domain.session_state import Resume
    from agent.execution.event_sink import EventSink
    from agent.execution.ports import Backend, Environment
    from agent.settings import Settings
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

AttemptKey = tuple[str, int]
SILENT = Traces()


class Sessions:
    """Admits actions and holds their sessions until nothing remains of them."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        sink: EventSink,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        traces: Traces = SILENT,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.sink = sink
        self.metrics = metrics
        self.tasks = tasks
        self.traces = traces
        self.living: dict[AttemptKey, Session] = {}
        self.running: dict[AttemptKey, asyncio.Task[None]] = {}
        self.changed = asyncio.Event()
        self.draining = False
        self.finished = 0
        self.on_change: Callable[[], None] = lambda: None
        self.on_end: Callable[[Session], None] = lambda session: None
        metrics.slots.set(settings.agent.slots)
        metrics.slots_available.set(settings.agent.slots)
        for stage in LIVES:
            metrics.actions_running.labels(stage).set_function(partial(self.doing, stage))

    @property
    def used(self) -> int:
        """Slots in use, environments that are being cleaned included."""
        return len(self.living)

    def doing(self, stage: str) -> int:
        """Return how many sessions are in a stage now; what comes after the outcome is cleaning."""
        return sum(doing(session) == stage for session in self.living.values())

    def action(self, action: Action) -> None:
        """Take an action, or answer why not. A repeated one is answered by the session that exists."""
        attempt = action.key.attempt_key
        if attempt in self.running:
            log.info("the action is known already", action=action.key.action_id, attempt=action.key.attempt)
            return
        self.metrics.actions_received.inc()
        if why := self.refusal():
            self.metrics.actions_rejected.labels(why.why.value).inc()
            self.reply(action.key, why)
            return
        try:
            timeout = admit(action, self.settings.policy)
        except ActionFailed as failure:
            self.action_failed(action.key, failure)
            return
        trace = self.traces.begin(action)
        action = replace(action, traceparent=trace.traceparent)
        session = Session(action, self.sink.open(action.key), timeout, trace)
        self.living[attempt] = session
        self.start(attempt, self.live(session, run_action(session, self.backend, self.settings)))

    def adopt(self, action: Action, environment: Environment) -> bool:
        """Go on with a session that was claimed, as soon as the scheduler says where; slots do not matter.

        Returns False when the attempt is still being ended here: to be asked again.
        """
        attempt = action.key.attempt_key
        if attempt in self.running:
            log.info("the attempt of an adopted session is still being ended here", action=action.key.action_id)
            environment.release()
            return False
        trace = self.traces.begin(action, adopted=True)
        session = Session(action, self.sink.open(action.key, adopted=True), action.timeout or 0.0, trace)
        session.environment = environment
        session.where = asyncio.get_running_loop().create_future()
        self.living[attempt] = session
        self.start(attempt, self.live(session, self.go_on(session, environment, session.where)))
        return True

    async def go_on(self, session: Session, environment: Environment, where: asyncio.Future[Resume]) -> None:
        """Wait for the scheduler's word, then run; a discard that comes instead cleans."""
        try:
            resume = await where
        except asyncio.CancelledError:
            await environment.remove()
            raise
        await go_on(session, environment, resume, self.settings)

    def resume(self, resume: Resume) -> None:
        """Take the scheduler's word on a session; for one that was not adopted only a pending cancel is new."""
        session = self.living.get(resume.key.attempt_key)
        if session is None:
            return
        if session.where is not None and not session.where.done():
            session.where.set_result(resume)
        elif resume.cancel is not None:
            session.cancel(resume.cancel)

    def forgotten(self, key: Key, resume: Resume) -> bool:
        """Have a session told again to a scheduler that lost what it had stored; False when there is none to tell."""
        session = self.living.get(key.attempt_key)
        if session is None or session.key != key:
            return False
        session.forget(resume)
        return True

    def superseded(self, attempt: AttemptKey) -> None:
        """Drop a session that another agent has adopted, without touching its environment."""
        session = self.living.get(attempt)
        if session is not None:
            log.warning("another agent has adopted a session of this one", action=attempt[0], attempt=attempt[1])
            self.metrics.superseded.inc()
            self.drop(session)

    def hand_over(self) -> int:
        """Leave every session to the other agents of the pool, its environment running; returns how many."""
        sessions = [session for session in self.living.values() if not session.over]
        for session in sessions:
            self.metrics.handed_over.inc()
            self.drop(session)
        return len(sessions)

    def drop(self, session: Session) -> None:
        """End a session here that goes on elsewhere."""
        session.over = True
        if session.environment is not None:
            session.environment.disown()
        self.end(session)

    def end(self, session: Session) -> None:
        """Cancel the task of a session, behind its first step: one that never began would not clean."""
        asyncio.get_running_loop().call_soon(self.running[session.key.attempt_key].cancel)

    def refusal(self) -> Rejected | None:
        """Say why nothing can be taken now."""
        if self.draining:
            return Rejected(Rejection.DRAINING, "the agent is leaving")
        if self.used >= self.settings.agent.slots:
            return Rejected(Rejection.NO_SLOT, f"all {self.settings.agent.slots} slots are in use")
        if not self.backend.reachable:
            return Rejected(Rejection.CLUSTER_UNAVAILABLE, "the cluster does not answer")
        return None

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        """Answer an action that cannot be run as it is: accepted, and failed in admission."""
        self.count(Outcome(Result.FAILED, failure.stage, failure.reason), 0.0)
        outcome = Outcome(Result.FAILED, failure.stage, failure.reason, message=failure.message)
        text = f"The action cannot be run:\n{failure.log or failure.message}\n"
        self.reply(key, Accepted(""), LogChunk(text.encode()[: 64 * 1024], source=Source.SETUP), Finished(outcome))

    def reply(self, key: Key, *events: Event) -> None:
        """Send the only events of an attempt that gets no session."""
        self.start(key.attempt_key, self.say(key, events))

    async def say(self, key: Key, events: tuple[Event, ...]) -> None:
        """Send events and wait until they are stored."""
        outlet = self.sink.open(key)
        try:
            for event in events:
                await outlet.send(event)
            await outlet.wait_until_stored()
        finally:
            outlet.close()

    def start(self, attempt: AttemptKey, work: Coroutine[Any, Any, None]) -> None:
        """Run the task of an attempt; a repeated Action finds it until it ends."""
        task = self.tasks.create_task(work, name=f"session {attempt[0]}/{attempt[1]}")
        self.running[attempt] = task
        self.notice()
        task.add_done_callback(lambda _: self.gone(attempt))

    def gone(self, attempt: AttemptKey) -> None:
        """Forget an attempt whose task has ended."""
        self.running.pop(attempt, None)
        self.living.pop(attempt, None)
        self.notice()

    def notice(self) -> None:
        """Tell who waits that the slots in use may have changed."""
        self.metrics.slots_used.set(self.used)
        free = 0 if self.draining else max(0, self.settings.agent.slots - self.used)
        self.metrics.slots_available.set(free)
        self.changed.set()
        self.on_change()

    async def live(self, session: Session, life: Coroutine[Any, Any, None]) -> None:
        """Run a session; whatever goes wrong in it stays in it, and is told."""
        ids: dict[str, Any] = {"action": session.key.action_id, "attempt": session.key.attempt}
        if session.trace.trace_id:
            ids["trace_id"] = session.trace.trace_id
        with structlog.contextvars.bound_contextvars(**ids):
            log.info("session began", image=session.action.image, commands=len(session.action.commands))
            try:
                await life
            except Exception as error:
                self.metrics.internal_errors.labels("session").inc()
                log.exception("a session failed in a way that should not happen")
                await self.give_up(session, error)
            finally:
                session.outlet.close()
                session.trace.end()
                self.account(session)

    async def give_up(self, session: Session, error: Exception) -> None:
        """Tell the scheduler of a session that failed inside the agent, unless its outcome was told already."""
        if session.outcome is not None:
            return
        try:
            await session.finish(Outcome(Result.FAILED, session.stage, Reason.INTERNAL, message=f"{error!r}"[:1000]))
        except Exception:
            log.exception("the failure of a session could not be told")

    def account(self, session: Session) -> None:
        """Count a session that has ended."""
        if session.outcome is None:
            log.info("session left without an outcome", stage=session.stage.value)
            return
        self.finished += 1
        self.on_end(session)
        self.count(session.outcome, time.monotonic() - session.began)
        for stage, phase in PHASES.items():
            if stage in session.stage_seconds:
                self.metrics.phase_duration.labels(phase).observe(session.stage_seconds[stage])
        of_lines, of_total, gaps = session.log_left_out
        self.metrics.log_dropped_bytes.labels("line_limit").inc(of_lines)
        self.metrics.log_dropped_bytes.labels("total_limit").inc(of_total)
        for certain, number in gaps.items():
            self.metrics.log_gaps.labels("certain" if certain else "possible").inc(number)
        self.metrics.artifact_retries.inc(session.retries)
        if session.files_failed:
            self.metrics.artifact_failures.labels(session.files_failed).inc()
        for seconds in session.command_seconds:
            self.metrics.command_duration.observe(seconds)
        self.metrics.internal_errors.labels("session").inc(session.errors)
        outcome = session.outcome
        log.info(
            "session ended",
            outcome=outcome.result.value,
            stage=outcome.stage.value,
            reason=outcome.reason.value if outcome.reason else None,
            exit_code=outcome.exit_code,
            seconds=round(time.monotonic() - session.began, 3),
        )

    def count(self, outcome: Outcome, seconds: float) -> None:
        """Count an outcome."""
        reason = outcome.reason.value if outcome.reason else ""
        labels = (outcome.result.value, outcome.stage.value, reason, fault(outcome.reason))
        self.metrics.actions_completed.labels(*labels).inc()
        self.metrics.action_duration.labels(outcome.result.value).observe(seconds)

    def cancel(self, attempt: AttemptKey, cancel: Cancel) -> None:
        """End a session; an unknown one has ended already."""
        session = self.living.get(attempt)
        if session is not None:
            session.cancel(cancel)

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        """Drop a session that the scheduler wants nothing of any more."""
        session = self.living.get(key.attempt_key)
        # One that is over is answered so too, when the stream breaks while it cleans; its cleaning goes on.
        if session is None or session.key.claim > key.claim or session.over:
            return
        log.warning("the scheduler discards a session", action=key.action_id, message=message, other=claimed_by_other)
        if claimed_by_other:
            self.drop(session)
        else:
            session.over = True
            self.end(session)

    def drain(self, message: str) -> None:
        """Take nothing new from now on."""
        if not self.draining:
            log.info("draining", message=message, running=self.used)
            self.draining = True
            self.metrics.draining.set(1)
            self.notice()

    def cancel_all(self, message: str) -> None:
        """End every session; one whose place the scheduler has not told yet is left to the others."""
        for session in list(self.living.values()):
            if session.where is not None and not session.where.done() and not session.over:
                self.drop(session)
            else:
                session.interrupt(Wish(Reason.CANCELLED, message, None))

    def forsake(self) -> None:
        """Leave every environment as it is, also those that are being removed: the cluster takes no word from here."""
        for session in self.living.values():
            if session.environment is not None:
                session.environment.disown()

    def abandon(self) -> None:
        """End the tasks of sessions that did not end by themselves."""
        for task in self.running.values():
            task.cancel()

    async def idle(self) -> None:
        """Wait until no session and no reply is left."""
        while self.running:
            self.changed.clear()
            await self.changed.wait()


def doing(session: Session) -> str:
    """Return the word in the metrics for what a session is doing."""
    if session.outcome is not None or session.over:
        return "cleanup"
    return "setup" if session.stage is Stage.ADMISSION else session.stage.value


# Set-up is split finer, and cleaning told, by the cluster's side, which sees them.
PHASES = {Stage.COMMANDS: "commands", Stage.ARTIFACTS: "artifacts"}
