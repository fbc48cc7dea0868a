"""The whole life of an action on one screen: set up, run the commands, collect the files, report, clean.

`run_action` lives as long as its session. Whatever happens inside becomes one outcome; whatever the outcome, the
environment is removed after the scheduler has stored everything, and the function returns when the API says it is gone.
"""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from agent.domain.errors import ActionFailed, Stage
from agent.domain.events import Source
from agent.domain.observations import Exited, Lost, Running, SetupFailed
from agent.execution.artifacts import collect
from agent.execution.commands import lost, run_commands
from agent.execution.session import Interrupted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent.domain.observations import Observation
    from agent.domain.outcome import Outcome
    from agent.domain.session_state import Resume
    from agent.execution.ports import Backend, Environment
    from agent.execution.session import Session
    from agent.settings import Settings

    Beginning = Callable[[Session, Environment], Awaitable[None]]


async def run_action(session: Session, backend: Backend, settings: Settings) -> None:
    """Run one session from its acceptance until nothing remains of it."""
    await live(session, backend.environment(session.action), set_up, settings)


async def go_on(session: Session, environment: Environment, resume: Resume, settings: Settings) -> None:
    """Run an adopted session from where the scheduler says it stands, until nothing remains of it."""
    session.resumed(resume)
    await live(session, environment, partial(take_over, resume=resume), settings)


async def live(session: Session, environment: Environment, begin: Beginning, settings: Settings) -> None:
    """Live and tell of it, again when the scheduler has lost what it was told; clean when it has everything."""
    session.environment = environment
    try:
        while not await session.heard(tell(session, environment, begin, settings)):
            session.begin_again()
            begin = set_up if session.made else begin
    finally:
        await environment.remove()
    await session.repeat_outcome()


async def tell(session: Session, environment: Environment, begin: Beginning, settings: Settings) -> None:
    """Accept, begin, run the commands, collect the files, report."""
    try:
        if not session.known:
            await session.accept(environment.name)
        await begin(session, environment)
        end = await run_commands(session, environment, settings)
        outcome = await collect(session, environment, end, settings)
    except ActionFailed as failure:
        outcome = await explained(session, failure)
    except Interrupted as interrupted:
        outcome = session.interrupted(interrupted.wish)
    if environment.interactive:
        await lingered(session, environment, outcome)
    await session.finish(outcome)


async def take_over(session: Session, environment: Environment, *, resume: Resume) -> None:
    """Complete an adopted environment and wait until its commands run, or have run.

    Raises:
        ActionFailed, Interrupted: it does not come to that.
    """
    await session.guarded(environment.take_over(resume.secrets))
    session.made = True
    if resume.cancel is not None:
        session.cancel(resume.cancel)
    if not environment.running_for:
        await begun(session, environment)
    session.spent = environment.running_for


async def set_up(session: Session, environment: Environment) -> None:
    """Create the environment and wait until the commands may run; one that is told again has its own already.

    Raises:
        ActionFailed, Interrupted: it does not come to that.
    """
    if not session.known:
        await session.enter(Stage.SETUP)
    session.spent = environment.running_for
    if not session.made:
        await session.guarded(environment.create(partial(session.enter, Stage.SETUP)))
        session.made = True
    await begun(session, environment)


async def begun(session: Session, environment: Environment) -> None:
    """Wait until the commands run, or have run; make an environment that is lost before again, once.

    Raises:
        ActionFailed, Interrupted: it does not come to that.
    """
    for last in (False, True):
        seen = await session.guarded(waited(session, environment))
        if isinstance(seen, (Running, Exited)):
            if environment.interactive and isinstance(seen, Running):
                await session.guarded(environment.upload_workspace())
            return
        if isinstance(seen, SetupFailed):
            raise ActionFailed(Stage.SETUP, seen.reason, seen.message, log=seen.log)
        if last or not isinstance(seen, Lost) or not seen.unstarted or not environment.recreatable:
            raise lost(session.stage, seen)
        await session.say(f"{seen.message}; no command had run: made again", Source.SETUP)
        await session.guarded(again(session, environment))


async def again(session: Session, environment: Environment) -> None:
    """Make an environment once more, when nothing is left of the one before."""
    await environment.remove()
    await environment.create(partial(session.enter, Stage.SETUP))


async def waited(session: Session, environment: Environment) -> Observation | None:
    """Wait for the commands to start, telling each thing that is waited for; returns what ended the wait."""
    async with aclosing(environment.observations()) as observations:
        async for seen in observations:
            if isinstance(seen, (Running, Exited, SetupFailed, Lost)):
                return seen
            await session.enter(Stage.SETUP, seen.detail)
    return None


async def lingered(session: Session, environment: Environment, outcome: Outcome) -> None:
    """Let who sits at the terminal look at the environment before it is removed; a wish that comes now ends that."""
    session.serve_wish()
    try:
        said = await session.guarded(environment.hold_for_debugging(outcome))
    except Interrupted:
        return
    if said:
        await session.say(said, Source.SETUP)


async def explained(session: Session, failure: ActionFailed) -> Outcome:
    """Write why the action failed into its log, for the person who reads it; returns the outcome."""
    source = Source.SETUP if failure.stage in (Stage.ADMISSION, Stage.SETUP) else Source.AGENT
    await session.say(failure.log or f"[{failure.message}]", source)
    return session.failed(failure)
