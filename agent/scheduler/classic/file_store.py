"""The files of actions in a folder of the agent. The classic protocol cannot send files to the scheduler.

A `FileStore` lives as long as the process. Each action has a folder of its own. Its files are first copied into a
staging folder, which is renamed when all files are complete. Folders older than `max_age` are removed. Then the oldest
folders are removed until the remaining folders fit into `max_size`. The agent removes folders at its start and after
each action, so only copies in progress can exceed the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
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

STAGING_PREFIX = ".copy-"


class FileStore:
    """Keeps the files of many actions. `host` names the agent in texts. In a pod it is the name of the pod."""

    def __init__(self, top: Path, settings: ClassicSettings, metrics: Metrics) -> None:
        self.top = top
        self.max_size = settings.files_max_size
        self.max_age = settings.files_max_age
        self.metrics = metrics
        # The address that the scheduler dials cannot name this agent, because all agents may share one address.
        self.host = socket.gethostname()

    def describe(self, key: Key, summary: ArtifactSummary) -> str:
        """Return a line of log that names the folder of an action's files."""
        files = "1 file" if summary.files == 1 else f"{summary.files} files"
        return f"[{files} ({summary.bytes} bytes) kept by the agent on {self.host} in {self.top / key.action_id}]\n"

    async def keep(self, key: Key, parts: AsyncIterator[FilePart]) -> None:
        """Write the files of an action. The files appear in the action's folder when all files are complete.

        Raises:
            ActionFailed: the folder cannot store the files, and another try cannot succeed.
            Exception: whatever `parts` raises.
        """
        copy: Copy | None = None
        try:
            copy = await asyncio.to_thread(Copy, self.top)
            async for part in parts:
                await asyncio.to_thread(copy.write, part)
            await asyncio.to_thread(copy.finish, self.top / key.action_id)
        except OSError as error:
            message = f"the files cannot be kept in {self.top}: {error.strerror}"
            raise ActionFailed(Stage.ARTIFACTS, Reason.ARTIFACTS_FAILED, message) from error
        finally:
            if copy is not None:
                await asyncio.shield(asyncio.to_thread(copy.abandon))
        self.metrics.artifact_files.inc(copy.files)
        self.metrics.artifact_bytes.inc(copy.bytes)
        await self.prune_after(key)

    async def prune_after(self, key: Key) -> None:
        """Remove old folders. A failure is logged, because the files of this action are complete."""
        try:
            await asyncio.to_thread(self.prune, key.action_id)
        except OSError as error:
            log.warning("old folders of files cannot be removed", folder=str(self.top), error=str(error))

    def prune(self, newest: str = "") -> None:
        """Remove folders that are older than `max_age`, then the oldest until the rest fits into `max_size`.

        Never remove the folder of action `newest`.
        """
        self.top.mkdir(parents=True, exist_ok=True)
        with os.scandir(self.top) as entries:
            folders = [entry for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name != newest]
        kept = [(changed, entry.name) for entry in folders if (changed := changed_at(entry)) is not None]
        total = size_of(self.top / newest) if newest else 0
        # The loop goes from the newest to the oldest. Once the limit is reached, every older folder is removed.
        for changed, name in sorted(kept, reverse=True):
            folder = self.top / name
            # A young staging folder belongs to a copy in progress. An old staging folder was left by an agent that
            # died.
            if name.startswith(STAGING_PREFIX) and time.time() - changed < self.max_age:
                continue
            total += size_of(folder)
            if total > self.max_size or time.time() - changed > self.max_age:
                log.info("removing the files of an old action", folder=str(folder))
                shutil.rmtree(folder, ignore_errors=True)


class Copy:
    """One copy in progress. Its methods block, so they run on a thread."""

    def __init__(self, top: Path) -> None:
        top.mkdir(parents=True, exist_ok=True)
        self.staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=top))
        self.staging.chmod(0o755)
        self.handle = -1
        self.mode = 0
        self.files = 0
        self.bytes = 0

    def write(self, part: FilePart) -> None:
        """Write the next part into the staging folder.

        Raises:
            OSError: the part cannot be written, or its path leaves the folder.
        """
        match part:
            case FileStart():
                # No other process writes into the staging folder, so no parent of the path can be a symbolic link.
                path = os.fsencode(self.staging) + b"/" + safe_path(part.path)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
                self.mode = part.mode & 0o777
            case FileData():
                write_all(self.handle, part.data)
                self.bytes += len(part.data)
            case FileEnd():
                os.fchmod(self.handle, self.mode)
                self.close_file()
                self.files += 1

    def finish(self, folder: Path) -> None:
        """Replace `folder`, the folder of the action, with the copied files. If no file was copied, delete `folder`."""
        if folder.exists():
            shutil.rmtree(folder)
        if self.files:
            self.staging.rename(folder)

    def abandon(self) -> None:
        """Remove the staging folder, if `finish` has not renamed it."""
        self.close_file()
        shutil.rmtree(self.staging, ignore_errors=True)

    def close_file(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


def safe_path(path: bytes) -> bytes:
    """Return the path if it stays within its folder.

    Raises:
        OSError: the path leaves the folder.
    """
    try:
        safe_components(path)
    except ValueError as error:
        raise OSError(None, f"{path[:200]!r} is not a path within the folder of the action") from error
    return path


def changed_at(entry: os.DirEntry[str]) -> float | None:
    """Return the time of the folder's last change, or None if another copy has renamed or removed the folder."""
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return None


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder. Files that vanish meanwhile count as 0."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(where, name)).st_size
    return total
