"""The whole life of a session: set up, run the commands, collect the files, report, clean up.

Everything that happens in a session becomes one outcome. The environment is removed after the scheduler has stored the
outcome, whatever the outcome is. `run_action` returns when the API server reports that the environment is gone.
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.events import Source
from agent.domain.observations import Exited, Lost, Running, SetupFailed
from agent.execution.commands import environment_lost, run_commands
from agent.execution.files.artifacts import collect
from agent.execution.files.caches import restore_caches, save_caches
from agent.execution.files.inputs import provide_inputs
from agent.execution.services.logs import live_logs, send_last_lines
from agent.execution.session import Interrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.observations import Observation
    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Resume
    from agent.execution.ports import Backend, Environment
    from agent.execution.session import Session
    from agent.settings import Settings

    Start = Callable[[Session, Environment, Settings], Awaitable[None]]

log = structlog.get_logger()


async def run_action(session: Session, backend: Backend, settings: Settings) -> None:
    """Run a session from its acceptance until its environment is gone."""
    await run_to_end(session, backend.environment(session.action), set_up, settings)


async def run_adopted(session: Session, environment: Environment, resume: Resume, settings: Settings) -> None:
    """Run an adopted session from the resume point that the scheduler sent, until its environment is gone."""
    session.resume(resume)
    await run_to_end(session, environment, partial(take_over, resume=resume), settings)


async def run_to_end(session: Session, environment: Environment, start: Start, settings: Settings) -> None:
    """Run and report the session, and report it again after each state loss of the scheduler.

    Then remove the environment. `start` creates the environment or takes it over.
    """
    session.attach(environment)
    action = session.action
    log.info("session began", environment=environment.name, image=action.image, commands=len(action.commands))
    try:
        while not await session.run_until_reset(run_once(session, environment, start, settings)):
            session.restart_reporting()
            # An environment that exists is not created again, because the commands must not run twice.
            start = set_up if session.progress.environment_exists else start
    finally:
        await environment.remove()
    await session.resend_outcome()


async def run_once(session: Session, environment: Environment, start: Start, settings: Settings) -> None:
    """Accept the action, run its commands, collect its files, and report the outcome.

    `start` makes the environment ready before the commands run.
    """
    try:
        if not session.progress.stored_seq:
            await session.reporter.accept(environment.name)
        async with live_logs(session, environment):
            await start(session, environment, settings)
            end = await run_commands(session, environment, settings)
            outcome = await collect(session, environment, end, settings)
            await save_caches(session, environment, end, outcome, settings)
    except ActionFailed as failure:
        outcome = await log_failure(session, failure)
    except Interrupted as interrupted:
        outcome = session.stopped_outcome(interrupted.request)
    outcome = await send_last_lines(session, environment, outcome)
    if environment.interactive:
        await hold_for_debugging(session, environment, outcome)
    await session.finish(outcome)


async def take_over(session: Session, environment: Environment, settings: Settings, *, resume: Resume) -> None:
    """Create what is missing of an adopted environment, and wait until its commands run or have ended.

    Raises:
        ActionFailed, Interrupted: the commands do not start.
    """
    begun = await session.run_until_stopped(environment.take_over(resume))
    if not begun:
        if resume.cancel is not None:
            session.cancel(resume.cancel)
        if session.stop_request is not None:
            raise Interrupted(session.stop_request)
        await session.run_until_stopped(begin_again(session, environment, resume))
    session.progress.environment_created()
    if resume.cancel is not None:
        session.cancel(resume.cancel)
    # The container runs while the commands wait for inputs or services.
    waits_for_files = session.awaits_files
    waits_for_services = bool(session.action.services) and session.reporter.stage is not Stage.COMMANDS
    if not environment.running_for or waits_for_files or waits_for_services:
        await wait_until_running(session, environment, settings)
    session.progress.count_earlier_run(0.0 if waits_for_files else environment.running_for)


async def begin_again(session: Session, environment: Environment, resume: Resume) -> None:
    """Create the environment of an adopted session whose commands the former agent has not started.

    Raises:
        ActionFailed: the scheduler sent no action, or the environment cannot be created.
    """
    if resume.action is None:
        text = "the former agent was lost before the first command, and the scheduler has not sent the action again"
        raise ActionFailed(Stage.SETUP, Reason.INTERNAL, text)
    await session.reporter.write_log(
        "the former agent was lost before the first command; the pod is re-created", Source.SETUP
    )
    await environment.begin_again(replace(resume.action, key=session.key, traceparent=session.action.traceparent))
    await environment.create(partial(session.reporter.enter, Stage.SETUP))


async def set_up(session: Session, environment: Environment, settings: Settings) -> None:
    """Create the environment, unless it exists, and wait until its commands run or have ended.

    Raises:
        ActionFailed, Interrupted: the commands do not start.
    """
    if not session.progress.stored_seq:
        await session.reporter.enter(Stage.SETUP)
    session.progress.count_earlier_run(environment.running_for)
    if not session.progress.environment_exists:
        await session.run_until_stopped(environment.create(partial(session.reporter.enter, Stage.SETUP)))
        session.progress.environment_created()
    await wait_until_running(session, environment, settings)


async def wait_until_running(session: Session, environment: Environment, settings: Settings) -> None:
    """Wait until the commands run or have ended. Fill the workspace first if the commands wait for it.

    Re-create the environment once if it is lost before the commands started.

    Raises:
        ActionFailed, Interrupted: the commands do not start.
    """
    for last in (False, True):
        seen = await session.run_until_stopped(observe_setup(session, environment))
        if isinstance(seen, Running):
            seen = await fill_workspace(session, environment, settings) or seen
        if isinstance(seen, (Running, Exited)):
            if environment.setup_notice:
                await session.reporter.write_log(environment.setup_notice)
            if isinstance(seen, Running):
                await session.run_until_stopped(environment.services.release_commands())
            return
        if isinstance(seen, SetupFailed):
            raise ActionFailed(Stage.SETUP, seen.reason, seen.message, log=seen.log)
        # Only a pod that certainly ran no command may be replaced: commands are never run twice.
        if last or not isinstance(seen, Lost) or not seen.unstarted or not environment.recreatable:
            raise environment_lost(session.reporter.stage, seen)
        await session.reporter.write_log(f"{seen.message}; no command had run, so the pod is re-created", Source.SETUP)
        await session.run_until_stopped(recreate(session, environment))


async def fill_workspace(session: Session, environment: Environment, settings: Settings) -> Observation | None:
    """Copy the working tree of the person at the terminal, caches and inputs into a running environment.

    Returns the last observation of the environment if it ends meanwhile, else None.

    Raises:
        ActionFailed, Interrupted: the commands do not start.
    """
    if environment.interactive:
        await session.run_until_stopped(environment.upload_workspace(partial(session.reporter.enter, Stage.SETUP)))
    if session.awaits_files:
        await restore_caches(session, environment, settings)
        return await session.run_until_stopped(provide_inputs(session, environment, settings))
    return None


async def recreate(session: Session, environment: Environment) -> None:
    """Remove an environment completely, then create it again."""
    await environment.remove()
    await environment.create(partial(session.reporter.enter, Stage.SETUP))


async def observe_setup(session: Session, environment: Environment) -> Observation | None:
    """Report what the set-up waits for, until the set-up ends. Returns the observation that ended the set-up."""
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            await session.services.report(seen)
            if isinstance(seen, (Running, Exited, SetupFailed, Lost)):
                return seen
            await session.reporter.enter(Stage.SETUP, seen.detail)
    return None


async def hold_for_debugging(session: Session, environment: Environment, outcome: Outcome) -> None:
    """Keep the environment while the person at the terminal looks at it. A new stop request ends the wait."""
    session.clear_stop_request()
    try:
        note = await session.run_until_stopped(environment.hold_for_debugging(outcome))
    except Interrupted:
        return
    if note:
        await session.reporter.write_log(note, Source.SETUP)


async def log_failure(session: Session, failure: ActionFailed) -> Outcome:
    """Write into the log of a failed action why it failed. Returns the outcome."""
    source = Source.SETUP if failure.stage in (Stage.ADMISSION, Stage.SETUP) else Source.AGENT
    await session.reporter.write_log(failure.log or f"[{failure.message}]", source)
    return session.failure_outcome(failure)
