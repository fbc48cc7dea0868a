"""The commands of a session: followed to their end, with their log to its last byte, or brought to an end.

Lives as long as the commands run. How they ended is the cluster's word; that they were told to end (cancel, timeout) is
the session's, and comes first in the outcome.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.observations import FINAL, Exited, Lost, SetupFailed
from agent.domain.outcome import Outcome, Result
from agent.execution.logs.forwarder import send_log
from agent.execution.session import End, Wish, ended, first_of

if TYPE_CHECKING:
    from agent.domain.observations import Observation
    from agent.execution.ports import Environment
    from agent.execution.session import Session
    from agent.settings import Settings

log = structlog.get_logger(__name__)

KILL_MARGIN = 20.0
# So long an environment that was lost may still give its log, seconds: a node that went away would be asked for ever.
UNREACHABLE_MARGIN, UNWANTED_MARGIN = 5.0, 1.0


async def run_commands(session: Session, environment: Environment, settings: Settings) -> End:
    """Follow the commands to their end, and their log to its last byte.

    Raises:
        ActionFailed: the environment was lost, or never ran a command.
    """
    await session.enter(Stage.COMMANDS)
    logs = asyncio.create_task(
        send_log(session, environment, settings, session.start), name=f"log of {session.key.action_id}"
    )
    end = asyncio.create_task(final(environment), name=f"end of {session.key.action_id}")
    try:
        seen = await ending(session, environment, end, settings)
        await drained(session, logs, reachable=seen is not None and not isinstance(seen, Lost))
    finally:
        await ended(logs)
        await ended(end)
    session.end = session.end or verdict(session, seen)
    return session.end


def verdict(session: Session, seen: Observation | None) -> End:
    """Join what was seen with what was wished.

    Raises:
        ActionFailed: the environment was lost, or never ran a command.
    """
    exited = seen if isinstance(seen, Exited) else None
    if session.wish is not None:
        outcome = session.interrupted(session.wish, exited.exit_code if exited else None)
        return (
            End(outcome, exited.files, exited.files_lost) if exited else End(outcome, False, "the pod was not reached")
        )
    if isinstance(seen, SetupFailed):
        raise ActionFailed(Stage.SETUP, seen.reason, seen.message, log=seen.log)
    if exited is None:
        raise lost(Stage.COMMANDS, seen)
    result = Result.SUCCEEDED if exited.reason is None else Result.FAILED
    command = exited.command or session.command
    outcome = Outcome(result, Stage.COMMANDS, exited.reason, exited.exit_code, command, exited.message)
    return End(outcome, exited.files, exited.files_lost)


def lost(stage: Stage, seen: Observation | None) -> ActionFailed:
    """Return the failure of an environment that went away."""
    if isinstance(seen, Lost):
        return ActionFailed(stage, seen.reason, seen.message, log=seen.log)
    return ActionFailed(stage, Reason.INTERNAL, f"the environment was not followed to its end: {seen}")


async def final(environment: Environment) -> Observation | None:
    """Return the last observation of an environment."""
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            if isinstance(seen, FINAL):
                return seen
    return None


async def ending(
    session: Session, environment: Environment, end: asyncio.Task[Observation | None], settings: Settings
) -> Observation | None:
    """Wait for the end of the commands, and bring it about at the timeout or when the session shall end.

    Returns None when even that did not end them: the environment is to be removed under them.
    """
    await first_of(end, session.wished, timeout=max(0.0, session.timeout - session.spent))
    if end.done():
        return end.result()
    session.interrupt(Wish(Reason.DEADLINE_EXCEEDED, f"the commands did not end within {session.timeout:g} s"))
    wish = session.wish
    grace = wish.grace if wish is not None and wish.grace is not None else settings.environment.grace
    reached = await environment.interrupt(grace)
    await asyncio.wait({end}, timeout=grace + KILL_MARGIN if reached else 0)
    if end.done():
        return end.result()
    log.warning("the commands could not be stopped in their pod", action=session.key.action_id, reached=reached)
    return None


async def drained(session: Session, logs: asyncio.Task[None], *, reachable: bool) -> None:
    """Wait until the log is sent to its end; only for a while after a wish, and where the node may not answer."""
    if reachable and session.wish is None:
        await first_of(logs, session.wished)
    margins = (None, KILL_MARGIN) if reachable else (UNREACHABLE_MARGIN, UNWANTED_MARGIN)
    await asyncio.wait({logs}, timeout=margins[session.wish is not None])
    if not reachable and not logs.done():
        await ended(logs)
        await session.say("[the log ends here: what was written since cannot be had from the node]")
    if logs.done() and not logs.cancelled() and (error := logs.exception()):
        # What happened to the log changes no verdict: it is counted, and said where the log ends.
        session.errors += 1
        log.error("the log of a session could not be followed", action=session.key.action_id, exc_info=error)
        await session.say("[the log ends here: the agent could not follow it]")
