"""Copies files from the environment to the scheduler. One copy is one upload.

A broken copy starts again from its first file.

The objects live as long as stage ARTIFACTS of a session. The agent stores no file, so the memory is bounded whatever
the size of the files. The scheduler replaces what an earlier copy has sent.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

from agent.domain.actions import When
from agent.domain.artifacts import FileData, FileEnd, FileStart, StoredObject
from agent.domain.errors import ActionFailed, ClusterError, InputMissing, Reason, SchedulerError, Stage
from agent.domain.observations import Collected
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FilePart
    from agent.domain.events import ArtifactSummary
    from agent.domain.outcome import Outcome
    from agent.execution.ports import Environment
    from agent.execution.progress import CommandsEnd
    from agent.execution.session import Session
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# Maximum number of left-out files that the log names. The `ArtifactSummary` that the scheduler gets names more.
MAX_NAMED = 20
# Maximum number of tries with an object store that does not work, if the files can go through the scheduler instead.
STORE_TRIES = 3


def wanted(rules: ArtifactRules, outcome: Outcome) -> bool:
    """Return whether files are copied after commands with this outcome. A cancelled action copies no files."""
    if outcome.result is Result.CANCELLED or rules.when is When.NEVER:
        return False
    return rules.when in (When.ALWAYS, When.SUCCESS if outcome.result is Result.SUCCEEDED else When.FAILURE)


async def collect(session: Session, environment: Environment, end: CommandsEnd, settings: Settings) -> Outcome:
    """Send the artifacts of an action whose commands ended as described by `end`. Returns the action's outcome.

    Raises:
        Interrupted: a stop request came while files were copied.
    """
    outcome, rules = end.outcome, session.action.artifacts
    succeeded = outcome.result is Result.SUCCEEDED
    if not wanted(rules, outcome):
        return outcome
    # The session may still hold the stop request that ended the commands. Only a newer stop request ends the copy.
    session.clear_stop_request()
    await session.reporter.enter(Stage.ARTIFACTS)
    try:
        if not end.files:
            raise files_failed(session, "lost", f"the files are lost: {end.files_lost}")
        await session.run_until_stopped(send_files(session, environment, settings))
    except ActionFailed as failure:
        await session.reporter.write_log(f"[{failure.message}]")
        # If the action declared no artifacts, the loss of the pod and its files does not turn a success into a failure.
        if succeeded and (rules.declared or end.files):
            return replace(session.failure_outcome(failure), exit_code=outcome.exit_code)
    return replace(outcome, stage=Stage.ARTIFACTS) if succeeded else outcome


async def send_files(session: Session, environment: Environment, settings: Settings) -> None:
    """Copy the artifacts of the session into the object store or to the scheduler, and report the left-out files.

    Raises:
        ActionFailed: the files are not stored. If only some declared files could not be sent, the others are stored.
    """
    seconds, falls_back = settings.artifacts.timeout, settings.objects.fallback == "scheduler"
    objects = environment.has_object_store and session.reporter.stores_references
    try:
        await copy_files(session, environment, seconds, objects=objects, tries=STORE_TRIES if falls_back else 0)
    except ActionFailed as failure:
        if failure.reason is not Reason.OBJECT_STORE_UNAVAILABLE or not falls_back:
            raise
        await session.reporter.write_log(f"[{failure.message}; the files now go through the scheduler]")
        session.stats.fell_back()
        await copy_files(session, environment, seconds)


async def copy_files(
    session: Session, environment: Environment, seconds: float, *, objects: bool = False, tries: int = 0
) -> None:
    """Copy the artifacts of the session, and report which files were left out.

    All tries together take at most `seconds`. `objects`: the pod puts the files into the object store, in at most
    `tries` tries.

    Raises:
        ActionFailed: with OBJECT_STORE_UNAVAILABLE or ARTIFACTS_FAILED.
    """
    rules = session.action.collected
    attempt = CopyAttempt(environment, rules)
    turns, errors = Turns(environment, seconds), Errors()
    try:
        async with asyncio.timeout(seconds) as limit:
            async for each in retrying(session, session.stats.upload_retried, errors, tries if objects else 0):
                with each:
                    async with turns.turn(limit):
                        packs = session.reporter.stores_packs
                        attempt = CopyAttempt(environment, rules, limit.when() or 0.0, objects=objects, packs=packs)
                        await session.reporter.upload(attempt.parts())
    except NoTurn as error:
        raise files_failed(session, "timeout", str(error)) from error
    except TimeoutError as error:
        if errors.of_store:
            raise not_stored(session, f"{errors.last}; tried for {seconds:g} s") from error
        late = f"the files could not be copied within {seconds:g} s; {attempt.progress}"
        raise files_failed(session, "timeout", late) from error
    except (ClusterError, SchedulerError) as error:
        if isinstance(error, ClusterError) and error.reason is Reason.OBJECT_STORE_UNAVAILABLE:
            raise not_stored(session, error.message) from error
        raise files_failed(session, "broken", f"the files could not be copied: {error}; {attempt.progress}") from error
    if attempt.collected is None:
        raise files_failed(session, "broken", "the files were not collected to their end")
    if objects:
        session.stats.objects_moved("put", attempt.files, attempt.bytes)
    await report_left_out(session, attempt.collected.summary)
    if attempt.collected.refused:
        raise files_failed(session, "refused", attempt.collected.refused)


class Errors:
    """The error after which the last try of a copy was repeated, None before the first repetition."""

    def __init__(self) -> None:
        self.last: BaseException | None = None

    @property
    def of_store(self) -> bool:
        """Return whether the object store was the cause."""
        return isinstance(self.last, ClusterError) and self.last.reason is Reason.OBJECT_STORE_UNAVAILABLE


def retrying(session: Session, retried: Callable[[], None], errors: Errors, tries: int = 0) -> AsyncRetrying:
    """Return the loop that retries the copy of a session's files. It calls `retried` before each new try.

    `errors` gets the error of each try that is repeated. `tries` 0 means as many as the timings of the session allow.
    """
    backoff = session.timings.upload_backoff

    def wait(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        # If the API server asks for a long wait, the time limit for all tries of the copy still ends this wait.
        asked = error.retry_after if isinstance(error, ClusterError) else None
        return backoff(state) if asked is None else asked

    def count(state: RetryCallState) -> None:
        retried()
        errors.last = state.outcome.exception() if state.outcome else None
        error = session.reporter.mask_text(str(errors.last))
        log.warning("copying files broke and starts again", action=session.key.action_id, error=error)

    return AsyncRetrying(
        retry=retry_if_exception(may_pass),
        stop=stop_after_attempt(tries or session.timings.upload_attempts),
        wait=wait,
        before_sleep=count,
        reraise=True,
    )


class NoTurn(Exception):
    """The session waited too long for a turn, because other sessions copied their files."""


class Turns:
    """The turns of one session to copy its files. Only a limited number of sessions copy files at the same time.

    Each try to copy waits for a turn of its own. All these waits together last at most `seconds`.
    """

    def __init__(self, environment: Environment, seconds: float) -> None:
        self.environment = environment
        self.seconds = seconds
        self.waited = 0.0

    @asynccontextmanager
    async def turn(self, limit: asyncio.Timeout) -> AsyncIterator[None]:
        """Wait for a turn and keep it during the `with` block. The wait does not count against `limit`.

        Raises:
            NoTurn: no turn came in time.
        """
        loop, end = asyncio.get_running_loop(), limit.when()
        began = loop.time()
        limit.reschedule(None)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self.seconds - self.waited):
                    await stack.enter_async_context(self.environment.copy_turn())
            except TimeoutError as error:
                text = f"the files could not be copied: other actions copied theirs for {self.seconds:g} s"
                raise NoTurn(text) from error
            waited = loop.time() - began
            self.waited += waited
            limit.reschedule(None if end is None else end + waited)
            yield


class CopyAttempt:
    """One try to copy the files of an environment. `parts` yields the parts of the files for the upload.

    `collected` is the result of a complete try. It is None before the try is complete.

    `end` is the deadline of the try by the event loop's clock. `objects`: the pod puts the files into the object store.
    `packs`: many small files may share an object.
    """

    def __init__(
        self,
        environment: Environment,
        rules: ArtifactRules,
        end: float = 0.0,
        *,
        objects: bool = False,
        packs: bool = False,
    ) -> None:
        self.environment = environment
        self.rules = rules
        self.end = end
        self.objects = objects
        self.packs = packs
        self.collected: Collected | None = None
        self.files = 0
        self.bytes = 0

    @property
    def progress(self) -> str:
        """Return how many files and bytes were copied so far, for people."""
        return f"the last attempt copied {self.files} whole files, {self.bytes} bytes in all, which are not kept"

    async def parts(self) -> AsyncIterator[FilePart]:
        """Yield the parts of all files of the environment, and count files and bytes."""
        seconds, size = self.end - asyncio.get_running_loop().time(), 0
        files = self.environment.files(self.rules, seconds, objects=self.objects, packs=self.packs)
        async with aclosing(files) as items:
            async for item in items:
                if isinstance(item, Collected):
                    self.collected = item
                    continue
                if isinstance(item, FileData):
                    self.bytes += len(item.data)
                elif isinstance(item, FileStart):
                    size = item.size
                elif isinstance(item, StoredObject):
                    self.bytes += size
                self.files += isinstance(item, FileEnd)
                yield item


def may_pass(error: BaseException) -> bool:
    """Return whether another try of the copy can succeed after this error."""
    if isinstance(error, SchedulerError):
        return not isinstance(error, InputMissing)
    return isinstance(error, ClusterError) and error.retryable


def files_failed(session: Session, why: str, message: str) -> ActionFailed:
    """Return the failure of stage ARTIFACTS with `message`, and count it. `why` is the value of the metric's label."""
    session.stats.files_not_stored(why)
    return ActionFailed(Stage.ARTIFACTS, Reason.ARTIFACTS_FAILED, message)


def not_stored(session: Session, why: str) -> ActionFailed:
    """Return the failure of stage ARTIFACTS if the object store cannot be used, and count it."""
    session.stats.files_not_stored("store")
    text = f"the files could not be put into the object store: {why}"
    return ActionFailed(Stage.ARTIFACTS, Reason.OBJECT_STORE_UNAVAILABLE, text)


async def report_left_out(session: Session, summary: ArtifactSummary) -> None:
    """Write into the log which files were left out, and send the summary."""
    if summary.left_out_files:
        await session.reporter.write_log(left_out_text(summary))
    masked = tuple(replace(item, path=session.reporter.mask(item.path)) for item in summary.left_out)
    await session.reporter.send(replace(summary, left_out=masked))


def left_out_text(summary: ArtifactSummary) -> str:
    """Return the text about left-out files: one line for one file, else a list."""
    named = [f"{item.path.decode('utf-8', 'backslashreplace')}: {item.why}" for item in summary.left_out[:MAX_NAMED]]
    if summary.left_out_files == 1 and named:
        return f"[left out of the files: {named[0]}]"
    more = summary.left_out_files - len(named)
    lines = [*named, *([f"and {more} more"] if more > 0 else [])]
    return "\n".join([f"[{summary.left_out_files} files were left out]", *(f"  {line}" for line in lines)])
