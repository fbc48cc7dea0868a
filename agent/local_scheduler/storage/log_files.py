"""The log files of actions: `ACTION.log` for the newest attempt, `ACTION.log.N` for an earlier attempt N.

Each log event carries the offset of its bytes, so a repeated write after a crash changes nothing. The functions keep no
state and run on the store's thread.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from agent.pipeline.events import LogText

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from agent.local_scheduler.action_state import ActionState
    from agent.pipeline.events import PipelineEvent
    from agent.pipeline.wire import local_pb2 as wire

WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def path_of(folder: Path, action: str) -> Path:
    """Return the path of the newest attempt's log."""
    return folder / f"{action}.log"


def earlier_path(folder: Path, action: str, attempt: int) -> Path:
    """Return the path of an earlier attempt's log."""
    return folder / f"{action}.log.{attempt}"


def clear(folder: Path, actions: Iterable[str]) -> None:
    """Create the folder, and an empty log file for each action.

    Delete the log files that an earlier pipeline left in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for action in actions:
        for old in (path_of(folder, action), *folder.glob(f"{action}.log.[0-9]*")):
            old.unlink(missing_ok=True)
        os.close(os.open(path_of(folder, action), WRITE, 0o644))


def set_aside(folder: Path, action: str, attempt: int) -> None:
    """Rename the log file of a lost attempt, with the attempt's number at its end, and create an empty log file."""
    with contextlib.suppress(FileNotFoundError):
        path_of(folder, action).replace(earlier_path(folder, action, attempt))
    os.close(os.open(path_of(folder, action), WRITE, 0o644))


def repair(folder: Path, state: ActionState) -> None:
    """Make a log file agree with the stored state, after a crash between the write of the log and of the state.

    Raises:
        OSError: the log file cannot be renamed or cut.
    """
    log = path_of(folder, state.name)
    aside = earlier_path(folder, state.name, state.attempt)
    # `aside` exists if the scheduler crashed after it had renamed a lost attempt's log, and before it had stored the
    # next attempt.
    if aside.exists():
        aside.replace(log)
    if not log.exists():
        return
    size = log.stat().st_size
    if size > state.log_bytes:
        os.truncate(log, state.log_bytes)


def append(folder_of: Callable[[str], Path], events: Sequence[PipelineEvent], *, durable: bool) -> None:
    """Write the bytes of log events. Each file is opened once, and if `durable` is set, synchronised once."""
    by_file: dict[Path, list[LogText]] = {}
    for event in events:
        if isinstance(event.body, LogText):
            by_file.setdefault(path_of(folder_of(event.pipeline), event.action), []).append(event.body)
    for log, texts in by_file.items():
        handle = os.open(log, WRITE, 0o644)
        try:
            for text in texts:
                write_at(handle, text.data, text.offset)
            if durable:
                os.fdatasync(handle)
        finally:
            os.close(handle)


def write_at(handle: int, data: bytes, offset: int) -> None:
    """Write all bytes at an offset. The operating system may accept only a part at a time."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written


def fill(folder: Path, messages: Iterable[wire.PipelineEvent], newest: Mapping[str, int]) -> None:
    """Copy the bytes of log events from the log files into `messages`. An event without a log file gets no bytes.

    `newest` is the number of the newest attempt of each action.
    """
    handles: dict[Path, int] = {}
    try:
        for message in messages:
            if message.WhichOneof("event") != "log":
                continue
            log = path_of(folder, message.action)
            if newest.get(message.action) != message.attempt:
                log = earlier_path(folder, message.action, message.attempt)
            if log not in handles:
                try:
                    handles[log] = os.open(log, READ)
                except FileNotFoundError:
                    continue
            message.log.data = os.pread(handles[log], message.log.length, message.log.offset)
    finally:
        for handle in handles.values():
            os.close(handle)
