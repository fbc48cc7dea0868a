"""Copies the inputs of an action, files of other actions, from the scheduler into the environment.

The copy lives as long as the set-up of a session. The commands start when it is complete. A broken copy starts again
from its first file, also in an agent that adopts the session. The agent stores no file, so the memory is bounded.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from agent.aio import cancelled_on_exit, first_of
from agent.domain.artifacts import FileData, FileEnd, FileStart, InputFile
from agent.domain.errors import ActionFailed, ClusterError, InputMissing, Reason, SchedulerError, Stage
from agent.execution.commands import last_observation
from agent.execution.files.artifacts import Errors, NoTurn, Turns, retrying

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.domain.artifacts import Input
    from agent.domain.observations import Observation
    from agent.execution.ports import Environment
    from agent.execution.session import Session
    from agent.settings import ArtifactSettings, ObjectSettings, Settings


async def provide_inputs(session: Session, environment: Environment, settings: Settings) -> Observation | None:
    """Copy the inputs into the environment, and let the commands start. Returns None.

    If the environment is lost or ends meanwhile, returns its last observation.

    Raises:
        ActionFailed: an input is missing, cannot be written, or was not copied in time.
    """
    action_id = session.key.action_id
    copy = asyncio.create_task(copy_inputs(session, environment, settings), name=f"inputs of {action_id}")
    end = asyncio.create_task(
        last_observation(session, environment), name=f"end of {action_id} while inputs are copied"
    )
    async with cancelled_on_exit(copy, end):
        await first_of(copy, end)
        if copy.done() and isinstance(copy.exception(), ActionFailed):
            # The loss of the pod breaks the copy. The watch may report the loss a little later.
            await first_of(end, timeout=session.timings.lost_log_margin_stopping)
        if end.done():
            return end.result()
        copy.result()
    session.progress.inputs_copied = True
    return None


async def copy_inputs(session: Session, environment: Environment, settings: Settings) -> None:
    """Copy all inputs, perhaps none, and let the commands start, within `artifacts.timeout` for all tries.

    Raises:
        ActionFailed: an input is missing, cannot be written, or was not copied in time.
    """
    limits = settings.objects if environment.has_object_store else settings.artifacts
    files, size = checked_totals(session.action.inputs, settings.artifacts.max_files, limits)
    timeout = settings.artifacts.timeout
    what = f"{files} file{'' if files == 1 else 's'} of other actions, {size / 1e6:.1f} MB"
    if session.action.inputs:
        await session.reporter.enter(Stage.SETUP, f"copying {what}")
    began = time.monotonic()
    turns, errors = Turns(environment, timeout), Errors()
    try:
        async with asyncio.timeout(timeout) as limit:
            async for each in retrying(session, session.stats.input_retried, errors):
                with each:
                    async with turns.turn(limit):
                        seconds = (limit.when() or 0.0) - asyncio.get_running_loop().time()
                        async with aclosing(checked_items(session, environment)) as items:
                            await environment.receive_inputs(items, seconds)
    except InputMissing as error:
        raise failed(Reason.INPUT_MISSING, str(error)) from error
    except NoTurn as error:
        raise failed(Reason.INTERNAL, str(error)) from error
    except TimeoutError as error:
        # Without an earlier error, the copy was too slow. If the pod reads all files from the store, the store was.
        stored = errors.last is None and all(is_stored(environment, each) for each in session.action.inputs)
        of_store = errors.of_store or (stored and bool(session.action.inputs))
        reason = Reason.OBJECT_STORE_UNAVAILABLE if of_store else Reason.INTERNAL
        why = f": {errors.last}" if errors.of_store else ""
        raise failed(reason, f"they were not copied within {timeout:g} s{why}") from error
    except ClusterError as error:
        raise failed(error.reason, error.message) from error
    except SchedulerError as error:
        raise failed(Reason.INTERNAL, str(error)) from error
    if not session.action.inputs:
        return
    seconds = time.monotonic() - began
    session.stats.inputs_received(files, size, seconds)
    objects = [file for each in session.action.inputs if is_stored(environment, each) for file in each.files]
    session.stats.objects_moved("got", len(objects), sum(file.size for file in objects))
    rate = size / 1e6 / max(seconds, 0.001)
    await session.reporter.enter(Stage.SETUP, f"copied {what}, in {seconds:.1f} s ({rate:.1f} MB/s)")


def failed(reason: Reason, why: str) -> ActionFailed:
    return ActionFailed(Stage.SETUP, reason, f"the inputs cannot be copied: {why}")


def checked_totals(
    inputs: tuple[Input, ...], max_files: int, limits: ArtifactSettings | ObjectSettings
) -> tuple[int, int]:
    """Return the number and the size of all files.

    Raises:
        ActionFailed: an input has no file, or the files are over a limit.
    """
    for number, each in enumerate(inputs, 1):
        if not each.files and not each.optional:
            raise failed(Reason.INPUT_MISSING, f"inputs[{number}]: {each.source} has stored no such file")
    files = [file for each in inputs for file in each.files]
    size = sum(file.size for file in files)
    problem = ""
    if len(files) > max_files:
        problem = f"{len(files)} files are over the limit of {max_files}"
    elif size > limits.max_total_size:
        problem = f"{size} bytes are over the limit of {limits.max_total_size} bytes in all"
    elif any(file.size > limits.max_file_size for file in files):
        problem = f"a file is over the limit of {limits.max_file_size} bytes"
    if problem:
        raise failed(Reason.INVALID_CONFIGURATION, problem)
    return len(files), size


def is_stored(environment: Environment, each: Input) -> bool:
    """Return whether the pod can read all files of an input from the object store."""
    return bool(each.files) and all(environment.has_object(file.uri) for file in each.files)


async def checked_items(session: Session, environment: Environment) -> AsyncGenerator[InputFile | FileData, None]:
    """Yield the files of all inputs and their data, with paths relative to the workspace.

    Raises:
        ActionFailed: the scheduler has another hash for a file than the action names.
        SchedulerError: the scheduler sends other files than the action names, or a call broke.
    """
    for number, each in enumerate(session.action.inputs, 1):
        if is_stored(environment, each):
            # The pod reads these files itself.
            for file in each.files:
                yield replace(file, path=each.target(file))
        elif each.files:
            async with aclosing(checked_input(session, number, each)) as items:
                async for item in items:
                    yield item


async def checked_input(session: Session, number: int, each: Input) -> AsyncGenerator[InputFile | FileData, None]:
    expected = iter(each.files)
    file, left = each.files[0], 0
    async with aclosing(session.reporter.fetch(number)) as parts:
        async for part in parts:
            match part:
                case FileStart():
                    following = next(expected, None)
                    if following is None or left or (following.path, following.size) != (part.path, part.size):
                        raise SchedulerError(f"the scheduler sent {part.path!r}, which is not the next file")
                    file = following
                    left = file.size
                    yield replace(file, path=each.target(file), uri="")
                case FileData():
                    left -= len(part.data)
                    if left < 0:
                        raise SchedulerError(f"the scheduler sent more than the {file.size} bytes of {file.path!r}")
                    yield part
                case FileEnd():
                    check_end(each, file, left, part)
    if left or next(expected, None) is not None:
        raise SchedulerError(f"the scheduler did not send all files of inputs[{number}]")


def check_end(each: Input, file: InputFile, left: int, end: FileEnd) -> None:
    """Check a file whose end has arrived. The pod checks the hash of the content."""
    name = file.path.decode("utf-8", "backslashreplace")
    if left:
        raise SchedulerError(f"the scheduler sent {left} bytes too few of {name}")
    if end.sha256 != file.sha256:
        raise failed(Reason.INTERNAL, f"the scheduler now has another sha256 for {name} of {each.source}")
