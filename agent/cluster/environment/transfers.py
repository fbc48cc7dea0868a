"""The files that an environment exchanges with its pod: artifacts out, inputs in.

The functions keep no state. Each transfer is one exec in container `helper`.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from agent.cluster.api.exec import ExecStream
from agent.cluster.artifacts import collect, deliver
from agent.cluster.artifacts.archive_reader import ArchiveLimits
from agent.cluster.pod.manifest import GO

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef
    from agent.domain.actions import ArtifactRules
    from agent.domain.artifacts import FileData, FilePart, InputFile
    from agent.domain.observations import Collected
    from agent.settings import Settings


async def collect_files(
    client: Client, target: ContainerRef, settings: Settings, rules: ArtifactRules, seconds: float
) -> AsyncGenerator[FilePart | Collected, None]:
    """Copy the files that match `rules` out of the pod, within `seconds`. The last item is `Collected`."""

    def open_exec(argv: list[str], seconds: float) -> ExecStream:
        return ExecStream(client, target, argv, seconds=seconds)

    limits = ArchiveLimits.of(settings.artifacts, seconds)
    async with aclosing(collect.collect(open_exec, rules, limits, workspace=settings.environment.workspace)) as items:
        async for item in items:
            yield item


async def receive_inputs(
    client: Client,
    target: ContainerRef,
    workspace: str,
    items: AsyncIterator[InputFile | FileData],
    seconds: float,
    *,
    snapshot: bool,
    gated: bool,
) -> None:
    """Copy files into the pod within `seconds`, then let the commands start. See `execution.ports.Environment`."""
    argv = deliver.deliver_command(workspace, GO, snapshot=snapshot, gated=gated)
    await deliver.deliver(ExecStream(client, target, argv, seconds=seconds, stdin=True), items)
