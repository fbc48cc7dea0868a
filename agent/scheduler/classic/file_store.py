"""The files of actions in a folder of this agent: the classic wire has no way to send them.

Each action has a folder of its own, written beside its place and moved into it when all files are whole. What is older
than `max_age` is removed, then the oldest until the rest fits into `max_size`: at the start and after each action, so
that the bound holds but for the copies that are under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import ActionFailed, Reason, Stage
from agent.domain.paths import safe_components, write_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.domain.actions import Key
    from agent.domain.artifacts import FilePart
    from agent.domain.events import ArtifactSummary
    from agent.settings import ClassicSettings
    from agent.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

STAGING = ".copy-"


class Folder:
    """Keeps the files of many actions. `host` is how the agent calls itself, for people."""

    def __init__(self, top: Path, settings: ClassicSettings, metrics: Metrics) -> None:
        self.top = top
        self.max_size = settings.files_max_size
        self.max_age = settings.files_max_age
        self.metrics = metrics
        self.host = ""

    def sentence(self, key: Key, summary: ArtifactSummary) -> str:
        """Say where the files of an action are."""
        files = "1 file" if summary.files == 1 else f"{summary.files} files"
        return f"[{files} ({summary.bytes} bytes) kept by the agent at {self.host} in {self.top / key.action_id}]\n"

    async def keep(self, key: Key, parts: AsyncIterator[FilePart]) -> None:
        """Write files, and put them into their place when all are whole.

        Raises:
            ActionFailed: they cannot be stored here; another try would not help.
            Exception: whatever `parts` raises.
        """
        copy: Copy | None = None
        try:
            copy = await asyncio.to_thread(Copy, self.top)
            async for part in parts:
                await asyncio.to_thread(copy.take, part)
            await asyncio.to_thread(copy.finish, self.top / key.action_id)
            await asyncio.to_thread(self.prune, key.action_id)
        except OSError as error:
            message = f"the files cannot be kept in {self.top}: {error.strerror}"
            raise ActionFailed(Stage.ARTIFACTS, Reason.ARTIFACTS_FAILED, message) from error
        finally:
            if copy is not None:
                await asyncio.shield(asyncio.to_thread(copy.abandon))
        self.metrics.artifact_files.inc(copy.files)
        self.metrics.artifact_bytes.inc(copy.bytes)

    def prune(self, but: str = "") -> None:
        """Remove what is too old, then the oldest of what is too much; never the action `but`, which has just come."""
        self.top.mkdir(parents=True, exist_ok=True)
        with os.scandir(self.top) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != but]
        kept = [(entry.stat(follow_symlinks=False).st_mtime, entry.name) for entry in folders]
        total = size_of(self.top / but) if but else 0
        # From the newest on: what comes after the bound was reached is too much.
        for changed, name in sorted(kept, reverse=True):
            folder = self.top / name
            if name.startswith(STAGING) and time.time() - changed < self.max_age:
                continue
            total += size_of(folder)
            if total > self.max_size or time.time() - changed > self.max_age:
                log.info("removing files of an old action", folder=str(folder))
                shutil.rmtree(folder, ignore_errors=True)


class Copy:
    """One copy, part by part; all methods block and are called on a thread."""

    def __init__(self, top: Path) -> None:
        top.mkdir(parents=True, exist_ok=True)
        self.staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=top))
        self.staging.chmod(0o755)
        self.handle = -1
        self.mode = 0
        self.files = 0
        self.bytes = 0

    def take(self, part: FilePart) -> None:
        """Write the next part. Only this copy writes into its folder, so that no link can be in the way."""
        match part:
            case FileStart():
                path = os.fsencode(self.staging) + b"/" + checked(part.path)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                self.mode = part.mode & 0o777
            case FileData():
                write_all(self.handle, part.data)
                self.bytes += len(part.data)
            case FileEnd():
                os.fchmod(self.handle, self.mode)
                self.leave()
                self.files += 1

    def finish(self, place: Path) -> None:
        """Move the files into their place, in that of an earlier try; without any, there is no place."""
        if place.exists():
            shutil.rmtree(place)
        if self.files:
            self.staging.rename(place)

    def abandon(self) -> None:
        """Leave nothing of a copy that was not finished; safe after `finish`."""
        self.leave()
        shutil.rmtree(self.staging, ignore_errors=True)

    def leave(self) -> None:
        """Close the file that is open."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def checked(path: bytes) -> bytes:
    """Return a path that stays within its folder.

    Raises:
        OSError: it does not.
    """
    try:
        safe_components(path)
    except ValueError as error:
        raise OSError(None, f"{path[:200]!r} is not a path within the folder of the action") from error
    return path


def size_of(folder: Path) -> int:
    """Return the bytes below a folder; what vanishes meanwhile has none."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total
