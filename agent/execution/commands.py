"""Follows the commands of a session to their end and their log to its last byte, or stops the commands.

The tasks of this module live as long as the commands run. The last observation of the pod decides the outcome. If the
session stopped the commands (cancel, timeout), the stop request decides the outcome instead.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog

from agent.aio import cancel_and_wait, cancelled_on_exit, first_of
from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.observations import FINAL, Exited, Lost, Running, SetupFailed
from agent.domain.outcome import Outcome, Result
from agent.execution.logs.forwarder import send_log
from agent.execution.progress import CommandsEnd
from agent.execution.session import StopRequest

if TYPE_CHECKING:
    from agent.domain.observations import Observation
    from agent.execution.ports import Environment
    from agent.execution.session import Session
    from agent.settings import Settings

log = structlog.get_logger(__name__)


async def run_commands(session: Session, environment: Environment, settings: Settings) -> CommandsEnd:
    """Follow the commands to their end, and their log to its last byte.

    Raises:
        ActionFailed: the environment was lost, or never ran a command.
    """
    began = session.reporter.stage is Stage.COMMANDS or session.progress.log_start.offset > 0
    await session.services.wait_for_ports(environment, began=began)
    action_id = session.key.action_id
    logs = asyncio.create_task(send_log(session, environment, settings), name=f"log of {action_id}")
    end = asyncio.create_task(last_observation(session, environment), name=f"end of {action_id}")
    async with cancelled_on_exit(logs, end):
        seen = await wait_or_stop(session, environment, end, settings)
        # Without a ready service, no command has run, and the log is empty.
        if session.services.commands_began.is_set() or not isinstance(seen, SetupFailed):
            await finish_log(session, logs, reachable=seen is not None and not isinstance(seen, Lost))
    # After a state loss of the scheduler, this function runs a second time. If the first run has seen how the commands
    # ended, the second run uses the same result.
    progress = session.progress
    return progress.commands_end or progress.commands_ended(judge_end(session, seen))


def judge_end(session: Session, seen: Observation | None) -> CommandsEnd:
    """Return how the commands ended. `seen` is the last observation. A stop request decides the outcome instead.

    Raises:
        ActionFailed: the environment was lost, or never ran a command.
    """
    exited = seen if isinstance(seen, Exited) else None
    if isinstance(seen, Lost) and session.stop_request and session.stop_request.reason is Reason.SERVICE_FAILED:
        # The service ended because the whole pod was lost.
        raise environment_lost(Stage.COMMANDS, seen)
    if session.stop_request is not None:
        by_service = session.stop_request.reason is Reason.SERVICE_FAILED
        outcome = session.stopped_outcome(session.stop_request, exited.exit_code if exited and not by_service else None)
        if exited is None:
            return CommandsEnd(outcome, files=False, files_lost="the pod was not reached")
        return CommandsEnd(outcome, exited.files, exited.files_lost)
    if isinstance(seen, SetupFailed):
        raise ActionFailed(Stage.SETUP, seen.reason, seen.message, log=seen.log)
    if exited is None:
        raise environment_lost(Stage.COMMANDS, seen)
    result = Result.SUCCEEDED if exited.reason is None else Result.FAILED
    command = exited.command or session.progress.command
    code = None if exited.reason is Reason.SERVICE_FAILED else exited.exit_code
    outcome = Outcome(result, Stage.COMMANDS, exited.reason, code, command, exited.message)
    return CommandsEnd(outcome, exited.files, exited.files_lost)


def environment_lost(stage: Stage, seen: Observation | None) -> ActionFailed:
    """Return the failure for a lost environment. `seen` is its last observation, None if there was none."""
    if isinstance(seen, Lost):
        return ActionFailed(stage, seen.reason, seen.message, log=seen.log)
    return ActionFailed(stage, Reason.INTERNAL, f"the environment was not followed to its end: {seen}")


async def last_observation(session: Session, environment: Environment) -> Observation | None:
    """Wait for the final observation of an environment. Returns None if the observations end without one.

    Reports the states of the services meanwhile. A service that fails stops the commands.
    """
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            await session.services.report(seen)
            if isinstance(seen, FINAL):
                return seen
            if isinstance(seen, Running) and seen.service_failure:
                await session.reporter.write_log(f"[{seen.service_failure}; the commands are stopped]")
                session.request_stop(StopRequest(Reason.SERVICE_FAILED, seen.service_failure))
    return None


async def wait_or_stop(
    session: Session, environment: Environment, end: asyncio.Task[Observation | None], settings: Settings
) -> Observation | None:
    """Wait until the commands end. Stop them at their timeout, or on a stop request.

    Returns the last observation of the environment, or None if the commands could not be stopped. The removal of the
    environment then ends the commands.
    """
    # The environment itself limits the wait for the services.
    await first_of(end, session.stop_requested, session.services.commands_began)
    if not end.done() and session.stop_request is None:
        seconds = max(0.0, session.timeout - session.progress.seconds_already_run)
        await first_of(end, session.stop_requested, timeout=seconds)
    if end.done():
        return end.result()
    message = f"the commands did not end within {session.timeout:g} s"
    # This call changes nothing if another stop request has ended the wait, because a session keeps its first request.
    session.request_stop(StopRequest(Reason.DEADLINE_EXCEEDED, message))
    request = session.stop_request
    grace = request.grace if request is not None and request.grace is not None else settings.environment.grace
    reached = await environment.interrupt(grace)
    await first_of(end, timeout=grace + session.timings.kill_margin if reached else 0)
    if end.done():
        return end.result()
    log.warning("the commands could not be stopped in their pod", action=session.key.action_id, reached=reached)
    return None


async def finish_log(session: Session, logs: asyncio.Task[None], *, reachable: bool) -> None:
    """Wait until the whole log is sent.

    The wait has a limit if there is a stop request, or if the node possibly does not answer (`reachable` is False).
    """
    timings = session.timings
    if reachable and session.stop_request is None:
        await first_of(logs, session.stop_requested)
    stopping = session.stop_request is not None
    if reachable:
        await first_of(logs, timeout=timings.kill_margin if stopping else None)
    else:
        await first_of(logs, timeout=timings.lost_log_margin_stopping if stopping else timings.lost_log_margin)
        if not logs.done():
            await cancel_and_wait(logs)
            await session.reporter.write_log("[the log ends here: the rest cannot be read from the node]")
    if logs.done() and not logs.cancelled() and (error := logs.exception()):
        # An unexpected error while the agent follows the log does not change the outcome. The error is counted, and a
        # notice is written into the log.
        session.stats.internal_error()
        log.error("the log of a session could not be followed", action=session.key.action_id, exc_info=error)
        await session.reporter.write_log("[the log ends here: the agent could not follow it]")
