"""Restores the caches of an action before its commands, and saves them afterwards. A cache never fails an action.

Each result is an event, a metric, and a line in the log if something did not work. The caches are restored before the
inputs are copied, so that no old cache replaces a fresh file. They are saved after the artifacts, while the environment
still exists.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import ClusterError, Stage
from agent.domain.events import CacheKind, CacheResult, Source
from agent.domain.outcome import Result
from agent.execution.session import Interrupted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.domain.outcome import Outcome
    from agent.execution.ports import Environment
    from agent.execution.progress import CommandsEnd
    from agent.execution.session import Session
    from agent.settings import Settings

log = structlog.get_logger(__name__)

# Seconds that the agent waits longer than the limit of the pod's program, before it gives up.
MARGIN = 15.0
NO_SCOPE = "the scheduler gave this action no scope for caches"


async def restore_caches(session: Session, environment: Environment, settings: Settings) -> None:
    """Restore the caches of an action. Its commands have not begun.

    Raises:
        Interrupted: a stop request came.
    """
    caches, scope = session.action.caches, session.action.cache_scope
    if not caches:
        return
    results: list[CacheResult] = []
    why = NO_SCOPE if scope is None or not scope.read else environment.cache_trouble
    kind = CacheKind.SKIPPED
    if scope is not None and not why:
        kind = CacheKind.MISS
        await session.reporter.enter(Stage.SETUP, "restoring caches")
        found = environment.restore_caches(caches, scope)
        why = await session.run_until_stopped(
            send_results(session, found, results, settings.caches.restore_timeout + MARGIN, restored=True)
        )
    if why:
        await report_fault(session, f"caches are not restored: {why}")
    for cache in caches[len(results) :] if why else ():
        await send_result(session, CacheResult(cache.key, kind, message=why), restored=True, logged=True)
    session.save_caches = len(results) < len(caches) or any(each.kind is not CacheKind.HIT for each in results)


async def save_caches(
    session: Session, environment: Environment, end: CommandsEnd, outcome: Outcome, settings: Settings
) -> None:
    """Save the caches that were not restored from their own key. `outcome` is that of the action, with its files."""
    action, scope = session.action, session.action.cache_scope
    succeeded = outcome.result is Result.SUCCEEDED
    wanted = any(each.saves(succeeded=succeeded) for each in action.caches) and session.save_caches
    if not wanted or scope is None or not scope.write or settings.policy.cache != "read-write":
        return
    if outcome.result is Result.CANCELLED or not end.files or environment.cache_trouble:
        return
    # The session may still hold the stop request that ended the commands. Only a newer one ends the work.
    session.clear_stop_request()
    await session.reporter.enter(session.reporter.stage, "saving caches")
    found = environment.save_caches(action.caches, scope, succeeded=succeeded)
    seconds = settings.caches.save_timeout + MARGIN
    try:
        why = await session.run_until_stopped(send_results(session, found, [], seconds, restored=False))
    except Interrupted as interrupted:
        # The outcome is decided, except that it was not reported yet.
        why = interrupted.request.message
        session.clear_stop_request()
    if why:
        await report_fault(session, f"caches are not saved: {why}")


async def send_results(
    session: Session,
    found: AsyncGenerator[CacheResult, None],
    results: list[CacheResult],
    seconds: float,
    *,
    restored: bool,
) -> str:
    """Send the results of one exec and add them to `results`. Returns why there are no more, "" if it ended well."""
    try:
        async with asyncio.timeout(seconds), aclosing(found):
            async for result in found:
                results.append(result)
                await send_result(session, result, restored=restored)
    except TimeoutError:
        return f"not done within {seconds:g} s"
    except ClusterError as error:
        return error.message
    except Exception as error:
        # A defect in the code for caches must not fail an action that could run without them.
        session.stats.internal_error()
        log.exception("caches could not be used", action=session.key.action_id)
        return f"{error!r}"[:1000]
    return ""


async def send_result(session: Session, result: CacheResult, *, restored: bool, logged: bool = False) -> None:
    """Report, count and log one result. `logged`: the log has the cause already."""
    mask = session.reporter.mask_text
    masked = replace(result, key=mask(result.key), used_key=mask(result.used_key), message=mask(result.message))
    session.stats.cache_used("restore" if restored else "save", result)
    await session.reporter.send(masked)
    if result.message and not logged:
        await report_fault(session, f"cache {result.key}: {result.kind.value}: {result.message}")


async def report_fault(session: Session, text: str) -> None:
    source = Source.SETUP if session.reporter.stage is Stage.SETUP else Source.AGENT
    await session.reporter.write_log(f"[{text}]", source)
