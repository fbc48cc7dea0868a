"""Read the log from its file, by an exec in container `helper`.

An `Errand` lives as long as its `async with` block. The exec needs more CPU time than a request for the pod's log. This
CPU time does not grow with the number of lines, and no part of the log is missing from the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from agent.cluster.api.exec import ExecStream
from agent.cluster.logs.blocks import BlockReader, Reached
from agent.cluster.packaging import log_command
from agent.domain.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef

# Seconds until an exec that reads the log is replaced by another exec. Nearly all actions end earlier.
LONGEST_SECONDS = 24 * 3600.0
# Seconds until an exec that only reads the present log is given up.
ONCE_SECONDS = 600.0


class Errand:
    """One exec that reads the log from byte `position` on: to its end (`follow`), or to its present end."""

    def __init__(self, client: Client, target: ContainerRef, position: int, *, follow: bool) -> None:
        seconds = LONGEST_SECONDS if follow else ONCE_SECONDS
        self.stream = ExecStream(client, target, log_command(position, follow=follow), seconds=seconds)
        self.reader = BlockReader(position)

    async def __aenter__(self) -> Self:
        await self.stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stream.__aexit__(kind, error, trace)

    async def items(self) -> AsyncGenerator[bytes | Reached, None]:
        """Yield parts of the log and, as the last item, how far the file was read.

        Raises:
            ClusterError: the exec failed, or ended too early.
        """
        async for data in self.stream:
            for item in self.reader.feed(data):
                yield item
                if isinstance(item, Reached):
                    return
        why = bytes(self.stream.stderr).decode("utf-8", "replace").strip()[-500:] or "it ended too early"
        raise ClusterError(f"the log cannot be read from its file: {why}", retryable=True)
