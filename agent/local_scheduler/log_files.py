"""The logs of actions as files: `ACTION.log` for the newest attempt, `ACTION.log.N` for attempt N before it.

Bytes are written where their event says, so that writing them again after a crash changes nothing. Functions only;
everything here runs on the store's one thread.
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
    """Where the log of the newest attempt is."""
    return folder / f"{action}.log"


def earlier(folder: Path, action: str, attempt: int) -> Path:
    """Where the log of an earlier attempt is."""
    return folder / f"{action}.log.{attempt}"


def clear(folder: Path, actions: Iterable[str]) -> None:
    """Make the folder, and remove what an earlier pipeline of the same names has left; begin empty logs."""
    folder.mkdir(parents=True, exist_ok=True)
    for action in actions:
        for old in (path_of(folder, action), *folder.glob(f"{action}.log.[0-9]*")):
            old.unlink(missing_ok=True)
        os.close(os.open(path_of(folder, action), WRITE, 0o644))


def set_aside(folder: Path, action: str, attempt: int) -> None:
    """Give the log of an attempt that is over its number, and begin an empty one."""
    with contextlib.suppress(FileNotFoundError):
        path_of(folder, action).replace(earlier(folder, action, attempt))
    os.close(os.open(path_of(folder, action), WRITE, 0o644))


def mend(folder: Path, state: ActionState) -> None:
    """Make the log agree with what is stored, after a crash between the two.

    Raises:
        OSError: it cannot be written, or bytes that were acknowledged are missing.
    """
    log = path_of(folder, state.name)
    aside = earlier(folder, state.name, state.attempt)
    if aside.exists():
        aside.replace(log)
    if not log.exists():
        return
    size = log.stat().st_size
    if size > state.log_bytes:
        os.truncate(log, state.log_bytes)


def append(folder_of: Callable[[str], Path], events: Sequence[PipelineEvent], *, durable: bool) -> None:
    """Write the bytes of log events, each file opened and synchronised once."""
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
    """Write all bytes at an offset."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view = view[written:]
        offset += written


def fill(folder: Path, messages: Iterable[wire.PipelineEvent], newest: Mapping[str, int]) -> None:
    """Put the bytes of logs into stored events; a log that was deleted meanwhile has none."""
    handles: dict[Path, int] = {}
    try:
        for message in messages:
            if message.WhichOneof("event") != "log":
                continue
            log = path_of(folder, message.action)
            if newest.get(message.action) != message.attempt:
                log = earlier(folder, message.action, message.attempt)
            if log not in handles:
                try:
                    handles[log] = os.open(log, READ)
                except FileNotFoundError:
                    continue
            message.log.data = os.pread(handles[log], message.log.length, message.log.offset)
    finally:
        for handle in handles.values():
            os.close(handle)
