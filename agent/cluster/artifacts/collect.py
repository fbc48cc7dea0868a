"""Brings the files of an action out of its pod.

One collection is one exec of the collector in container `files`: its stream is read, checked and handed on as it comes,
so memory is bounded and the reader's pace holds the sender back. All of it counts only when all of it was right: the
command's own success, the end of the archive, and a manifest that equals what arrived. Whatever is less is
`CollectionBroken`: what was handed on is void, and the caller may begin again from the start.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

from agent.cluster.api.exec import ExecError
from agent.cluster.artifacts.archive_manifest import Manifest
from agent.cluster.artifacts.archive_reader import ArchiveReader, End
from agent.cluster.artifacts.tar_header import ArchiveError
from agent.cluster.in_pod import packaging
from agent.cluster.in_pod.packaging import SNAPSHOT
from agent.domain.errors import ClusterError
from agent.domain.events import ArtifactSummary
from agent.domain.observations import Collected

if TYPE_CHECKING:
    from agent.cluster.artifacts.archive_reader import Limits
    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FilePart

# At the end of the time no file is begun any more, so that the one that was begun can come to its end.
MARGIN = 0.25
MARGIN_SECONDS = 30.0


class CollectionBroken(ClusterError):
    """The collection did not come to its end, or cannot be trusted; what was handed out is void."""


class Stream(Protocol):
    """A command's stdout; `exit_code` and `stderr` stand once it has ended (see `exec.ExecStream`)."""

    @property
    def stderr(self) -> bytes | bytearray:
        """The first bytes of its standard error."""

    @property
    def exit_code(self) -> int:
        """Its exit code."""

    def __aiter__(self) -> AsyncIterator[memoryview]:
        """Iterate over its stdout."""


OpenExec = Callable[[list[str], float], AbstractAsyncContextManager[Stream]]
"""Runs a command in container `files` of one pod, for so many seconds."""


def collect_command(rules: ArtifactRules, limits: Limits, *, workspace: str) -> list[str]:
    """Return what is run in container `files` to stream its files out."""
    seconds = math.ceil(limits.seconds - min(MARGIN_SECONDS, MARGIN * limits.seconds))
    numbers = [limits.files, limits.file_bytes, limits.total_bytes, seconds, len(rules.paths)]
    return [*packaging.collect_files_program(), workspace, SNAPSHOT, *map(str, numbers), *rules.paths, *rules.exclude]


async def collect(
    open_exec: OpenExec, rules: ArtifactRules, limits: Limits, *, workspace: str
) -> AsyncGenerator[FilePart | Collected, None]:
    """Yield the parts of all files, then `Collected`, within `limits.seconds`.

    What is not begun when most of the time is over is left out. Leave it early only through `contextlib.aclosing`.

    Raises:
        CollectionBroken: what was yielded is void; begin again, if it is retryable.
    """
    reader = ArchiveReader(limits)
    manifest: Manifest | None = None
    try:
        command = collect_command(rules, limits, workspace=workspace)
        async with open_exec(command, limits.seconds) as stream:
            async for chunk in stream:
                for item in reader.feed(chunk):
                    if isinstance(item, Manifest):
                        manifest = item
                    elif not isinstance(item, End):
                        yield item
            if stream.exit_code != 0:
                said = bytes(stream.stderr).decode("utf-8", "replace").strip()
                raise CollectionBroken(
                    f"the collector ended with {stream.exit_code}: {said[-1000:] or 'no message'}", retryable=True
                )
        reader.close()
    except ExecError as error:
        raise CollectionBroken(
            error.message, retryable=error.retryable, retry_after=error.retry_after, status=error.status
        ) from error
    except ArchiveError as error:
        raise CollectionBroken(f"the files did not arrive whole: {error}", retryable=True) from error
    if manifest is None:
        raise CollectionBroken("the files arrived without a manifest", retryable=True)
    if manifest.changed:
        names = ", ".join(path.decode("utf-8", "replace") for path in manifest.changed[:5])
        raise CollectionBroken(f"files changed while they were copied: {names}", retryable=True)
    summary = ArtifactSummary(manifest.files, manifest.total_bytes, manifest.left_out, manifest.left_out_files)
    yield Collected(summary, why_refused(manifest))


def why_refused(manifest: Manifest) -> str:
    """Return why declared files were not sent, empty when all were."""
    if manifest.exceeded:
        return f"artifact {manifest.exceeded.path.decode('utf-8', 'replace')!r}: {manifest.exceeded.why}"
    if manifest.unmatched:
        return "no file for the artifact paths " + ", ".join(repr(glob) for glob in manifest.unmatched)
    return ""
