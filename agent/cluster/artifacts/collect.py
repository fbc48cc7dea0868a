"""Collect the files of an action from its pod.

One collection is one exec of the program `collect_files` in container `helper`. The stream is read, checked and passed
on as it arrives. Memory is therefore bounded, and a slow consumer slows the sender. The collection counts only if all
of it is right: the command's exit code, the end of the archive, and a manifest that equals the files that arrived.
Otherwise `collect` raises `CollectionBroken`. The caller must then discard the files that were passed on, and can start
again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from typing import TYPE_CHECKING, Protocol

from agent.cluster import packaging
from agent.cluster.api.exec import ExecError
from agent.cluster.artifacts.archive_manifest import ArchiveManifest
from agent.cluster.artifacts.archive_reader import ArchiveEnd, ArchiveReader
from agent.cluster.artifacts.tar_header import ArchiveError
from agent.cluster.packaging import SNAPSHOT
from agent.domain.errors import ClusterError
from agent.domain.events import ArtifactSummary
from agent.domain.observations import Collected

if TYPE_CHECKING:
    from agent.cluster.artifacts.archive_reader import ArchiveLimits
    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FilePart

# The collector starts no further file in the last part of its time, so that it can finish the current file. This part
# is `MARGIN` (a share) of the time limit, at most `MARGIN_SECONDS`.
MARGIN = 0.25
MARGIN_SECONDS = 30.0
# Seconds without a byte after which a collection fails. The number of parallel collections is limited, so a silent
# collection would keep other sessions waiting. A working collector sends bytes every few seconds.
SILENT_SECONDS = 120.0
# Maximum number of characters of the collector's error output that an error keeps.
MAX_STDERR = 1000
# Maximum number of files that an error names, of those that changed while they were copied.
MAX_CHANGED = 5


class CollectionBroken(ClusterError):
    """The collection did not complete or cannot be trusted. The caller must discard the files that were yielded."""


class ExecOutput(Protocol):
    """The stdout of a command, implemented by `exec.ExecStream`. Each collection opens and closes its own.

    `exit_code` and `stderr` are complete once the iteration has ended.
    """

    @property
    def stderr(self) -> bytes | bytearray:
        """The first bytes of the command's standard error."""

    @property
    def exit_code(self) -> int:
        """The command's exit code."""

    def __aiter__(self) -> AsyncIterator[memoryview]:
        """Iterate over the command's stdout."""


OpenExec = Callable[[list[str], float], AbstractAsyncContextManager[ExecOutput]]
"""Runs a command in container `helper` of one pod. The second argument is the limit in seconds."""


def collect_command(rules: ArtifactRules, limits: ArchiveLimits, *, workspace: str) -> list[str]:
    """Return the command that streams the files out of container `helper`."""
    seconds = math.ceil(limits.seconds - min(MARGIN_SECONDS, MARGIN * limits.seconds))
    numbers = [limits.files, limits.file_bytes, limits.total_bytes, seconds, len(rules.paths)]
    return [*packaging.collect_files_program(), workspace, SNAPSHOT, *map(str, numbers), *rules.paths, *rules.exclude]


async def collect(
    open_exec: OpenExec, rules: ArtifactRules, limits: ArchiveLimits, *, workspace: str
) -> AsyncGenerator[FilePart | Collected, None]:
    """Yield the parts of all files, then `Collected`, within `limits.seconds`.

    When most of `limits.seconds` is over, the collector leaves out the files that it has not started. A caller that
    stops early must use `contextlib.aclosing`.

    Raises:
        CollectionBroken: the caller must discard everything that was yielded. If the error is retryable, the caller can
        start again.
    """
    manifest: ArchiveManifest | None = None
    command = collect_command(rules, limits, workspace=workspace)
    with errors_as_broken():
        async with aclosing(read_archive(open_exec, command, limits)) as items:
            async for item in items:
                if isinstance(item, ArchiveManifest):
                    manifest = item
                else:
                    yield item
    if manifest is None:
        raise CollectionBroken("the files arrived without a manifest", retryable=True)
    if manifest.changed:
        names = ", ".join(path.decode("utf-8", "replace") for path in manifest.changed[:MAX_CHANGED])
        raise CollectionBroken(f"files changed while they were copied: {names}", retryable=True)
    summary = ArtifactSummary(manifest.files, manifest.total_bytes, manifest.left_out, manifest.left_out_files)
    yield Collected(summary, refusal(manifest))


async def read_archive(
    open_exec: OpenExec, command: list[str], limits: ArchiveLimits
) -> AsyncGenerator[FilePart | ArchiveManifest, None]:
    """Run the collector and yield the checked items of its archive.

    Raises:
        ArchiveError: the archive is not acceptable or not complete.
        CollectionBroken: the collector's exit code is not 0.
        ExecError: the exec failed.
    """
    reader = ArchiveReader(limits)
    async with open_exec(command, limits.seconds) as stream:
        async for chunk in without_silence(stream):
            for item in reader.feed(chunk):
                if not isinstance(item, ArchiveEnd):
                    yield item
        if stream.exit_code != 0:
            message = bytes(stream.stderr).decode("utf-8", "replace").strip()[-MAX_STDERR:] or "no message"
            raise CollectionBroken(f"the collector ended with {stream.exit_code}: {message}", retryable=True)
    reader.close()


async def without_silence(stream: ExecOutput) -> AsyncIterator[memoryview]:
    """Yield the chunks of the stream.

    Raises:
        CollectionBroken: no chunk came for `SILENT_SECONDS`.
    """
    chunks = aiter(stream)
    while True:
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise CollectionBroken(f"no file came for {SILENT_SECONDS:g} s", retryable=True) from error
        yield chunk


@contextmanager
def errors_as_broken() -> Iterator[None]:
    """Turn the errors of the exec and of the archive into `CollectionBroken`."""
    try:
        yield
    except ExecError as error:
        raise CollectionBroken(
            error.message, retryable=error.retryable, retry_after=error.retry_after, status=error.status
        ) from error
    except ArchiveError as error:
        raise CollectionBroken(f"the files did not arrive whole: {error}", retryable=True) from error


def refusal(manifest: ArchiveManifest) -> str:
    """Return why the collector did not send a declared file, "" if it sent all declared files."""
    if manifest.exceeded:
        return f"artifact {manifest.exceeded.path.decode('utf-8', 'replace')!r}: {manifest.exceeded.why}"
    if manifest.unmatched:
        globs = ", ".join(repr(glob) for glob in manifest.unmatched)
        links = ", ".join(repr(path) for path in dict.fromkeys(manifest.links))
        return f"no file for the artifact paths {globs}" + (f"; links are not followed: {links}" if links else "")
    return ""
