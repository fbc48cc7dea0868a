"""Files from the environment to the scheduler: one collection is one upload, made again from its start when it broke.

Lives as long as the artifacts stage of a session. Nothing is kept in between, so memory is bounded whatever the size;
what an earlier try has sent is replaced by the scheduler.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from agent.domain.actions import When
from agent.domain.artifacts import FileData, FileEnd
from agent.domain.errors import ActionFailed, ClusterError, Reason, SchedulerError, Stage
from agent.domain.observations import Collected
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FilePart
    from agent.domain.events import ArtifactSummary
    from agent.domain.outcome import Outcome
    from agent.execution.ports import Environment
    from agent.execution.session import End, Session
    from agent.settings import Settings

log = structlog.get_logger(__name__)

TRIES = 8
backoff = wait_random_exponential(multiplier=0.2, max=5)


def wanted(rules: ArtifactRules, outcome: Outcome) -> bool:
    """Whether files are collected after commands that ended like this; never when nobody wants the action any more."""
    if outcome.result is Result.CANCELLED or rules.when is When.NEVER:
        return False
    return rules.when in (When.ALWAYS, When.SUCCESS if outcome.result is Result.SUCCEEDED else When.FAILURE)


async def collect(session: Session, environment: Environment, end: End, settings: Settings) -> Outcome:
    """Send the files that the action wants after this ending; returns the outcome.

    Raises:
        Interrupted: the session shall end while files are copied.
    """
    outcome, rules = end.outcome, session.action.artifacts
    succeeded = outcome.result is Result.SUCCEEDED
    if not wanted(rules, outcome):
        return outcome
    # A wish that ended the commands has done its work; one that comes now ends the copy.
    session.serve_wish()
    await session.enter(Stage.ARTIFACTS)
    try:
        if not end.files:
            raise failed(session, "lost", f"the files are lost: {end.files_lost}")
        await session.guarded(send_files(session, environment, settings.artifacts.timeout))
    except ActionFailed as failure:
        await session.say(f"[{failure.message}]")
        if succeeded and (rules.declared or end.files):
            return replace(session.failed(failure), exit_code=outcome.exit_code)
    return replace(outcome, stage=Stage.ARTIFACTS) if succeeded else outcome


async def send_files(session: Session, environment: Environment, seconds: float) -> None:
    """Copy all files of the session out, within `seconds` for all tries, and tell what was left out.

    Raises:
        ActionFailed: with ARTIFACTS_FAILED; what could be had has been stored.
    """
    retrying = AsyncRetrying(
        retry=retry_if_exception(may_pass),
        stop=stop_after_attempt(TRIES),
        wait=wait_as_told,
        before_sleep=lambda state: note(session, state),
        reraise=True,
    )
    end = asyncio.get_running_loop().time() + seconds
    one = Collection(environment, session.action.artifacts, end)
    try:
        async with asyncio.timeout_at(end):
            async for turn in retrying:
                with turn:
                    one = Collection(environment, session.action.artifacts, end)
                    await session.outlet.upload(one.parts())
    except TimeoutError as error:
        late = f"the files could not be copied within {seconds:g} s; {one.arrived}"
        raise failed(session, "timeout", late) from error
    except (ClusterError, SchedulerError) as error:
        raise failed(session, "broken", f"the files could not be copied: {error}; {one.arrived}") from error
    if one.collected is None:
        raise failed(session, "broken", "the files were not collected to their end")
    await tell(session, one.collected.summary)
    if one.collected.refused:
        raise failed(session, "refused", one.collected.refused)


class Collection:
    """One try until `end` (the loop's time): passes the parts on and keeps what is said at their end."""

    def __init__(self, environment: Environment, rules: ArtifactRules, end: float) -> None:
        self.environment = environment
        self.rules = rules
        self.end = end
        self.collected: Collected | None = None
        self.files = 0
        self.bytes = 0

    @property
    def arrived(self) -> str:
        """How far this try came, for people."""
        return f"the last try brought {self.files} files whole, {self.bytes} bytes in all, and they are not kept"

    async def parts(self) -> AsyncIterator[FilePart]:
        """Yield the parts."""
        seconds = self.end - asyncio.get_running_loop().time()
        async with aclosing(self.environment.files(self.rules, seconds)) as items:
            async for item in items:
                if isinstance(item, Collected):
                    self.collected = item
                    continue
                if isinstance(item, FileData):
                    self.bytes += len(item.data)
                self.files += isinstance(item, FileEnd)
                yield item


def may_pass(error: BaseException) -> bool:
    """Whether a new try can help."""
    return isinstance(error, SchedulerError) or (isinstance(error, ClusterError) and error.retryable)


def wait_as_told(state: RetryCallState) -> float:
    """Wait as long as the cluster asked for (the stage has its limit), else with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ClusterError) else None
    return backoff(state) if asked is None else asked


def note(session: Session, state: RetryCallState) -> None:
    """Log and count a copy that is made again."""
    session.retries += 1
    error = str(state.outcome.exception() if state.outcome else None)
    said = session.hidden(error.encode("utf-8", "replace")).decode("utf-8", "replace")
    log.warning("copying files broke and is begun again", action=session.key.action_id, error=said)


def failed(session: Session, why: str, message: str) -> ActionFailed:
    """Return the failure of this stage; `why` is its word in the metrics."""
    session.files_failed = why
    return ActionFailed(Stage.ARTIFACTS, Reason.ARTIFACTS_FAILED, message)


async def tell(session: Session, summary: ArtifactSummary) -> None:
    """Say in the log what was left out, and send the summary."""
    if summary.left_out_files:
        lines = [f"  {item.path.decode('utf-8', 'backslashreplace')}: {item.why}" for item in summary.left_out[:20]]
        more = summary.left_out_files - len(lines)
        lines += [f"  and {more} more"] if more > 0 else []
        text = f"[left out of the files:{lines[0][1:]}]" if summary.left_out_files == 1 and summary.left_out else ""
        await session.say(text or "\n".join([f"[{summary.left_out_files} files were left out]", *lines]))
    named = tuple(replace(item, path=session.hidden(item.path)) for item in summary.left_out)
    await session.send(replace(summary, left_out=named))
