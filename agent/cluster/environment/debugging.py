"""What a person at a terminal does with the environments of their own `run`: bring a tree, look inside, keep them.

The wire knows nothing of it: a `Workbench` comes from the command line of the process that is the agent, and lives as
long as that. An agent that serves a scheduler has none.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cluster.api.exec import ExecStream
from agent.cluster.environment import failure_report
from agent.cluster.environment import shell as shell_module
from agent.cluster.in_pod import packaging
from agent.cluster.pod.fields import container_status, is_running
from agent.cluster.pod.manifest import READY
from agent.domain.errors import ActionFailed, ClusterError, Reason, Stage
from agent.domain.json import Object
from agent.domain.outcome import Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from agent.cluster.api.client import Client
    from agent.cluster.api.exec import Target
    from agent.domain.outcome import Outcome


PIECE = 64 << 10
FILL_SECONDS = 1800.0


@dataclass(frozen=True, slots=True)
class Workbench:
    """What is wanted of every environment.

    `tree` is a tar that becomes the workspace, `shell` opens one in the workspace of an action that failed, `keep`
    leaves every environment where it is. `screen` gives the terminal to the shell.
    """

    screen: Callable[[], AbstractAsyncContextManager[None]]
    tree: Path | None = None
    keep: bool = False
    shell: bool = False

    @property
    def holds(self) -> bool:
        """Whether the workspace must be within reach, whatever files the action wants."""
        return self.tree is not None or self.keep or self.shell

    async def fill(self, client: Client, target: Target, workspace: str) -> None:
        """Put the tree into the workspace, if there is one; the commands begin after it.

        Raises:
            ActionFailed: it did not get there.
        """
        if self.tree is None:
            return
        tree, size = self.tree, self.tree.stat().st_size
        argv = [*packaging.receive_tree_program(), workspace, packaging.SNAPSHOT, READY, str(size)]
        stream = ExecStream(client, target, argv, seconds=FILL_SECONDS, stdin=True)
        try:
            async with stream:
                sender = asyncio.create_task(send(stream, tree), name=f"tree for {target.pod}")
                try:
                    async for _ in stream:
                        pass
                finally:
                    sender.cancel()
                    await asyncio.wait({sender})
            if stream.exit_code:
                said = bytes(stream.stderr).decode("utf-8", "replace").strip().rpartition("\n")[2]
                raise failed(said or f"exit code {stream.exit_code}")
        except ClusterError as error:
            raise failed(error.message) from error

    async def look(
        self, client: Client, path: str, pod: Object, outcome: Outcome, target: Target, workspace: str
    ) -> str:
        """Open a shell in the workspace of an action that failed, if one is wanted, until it is left.

        Returns what the cluster says of a pod whose commands failed, "" of any other.
        """
        if outcome.result is not Result.FAILED or outcome.stage is Stage.SETUP:
            return ""
        said = await failure_report.described(client, path, pod)
        if self.shell and is_running(container_status(pod.get("status", {}), target.container)):
            async with self.screen():
                print(opening(outcome, target, workspace), flush=True)  # noqa: T201 - this is the terminal's
                try:
                    await shell_module.shell(client, target, workspace)
                except ClusterError as error:
                    print(f"the shell ended: {error.message}", flush=True)  # noqa: T201
        return said


def opening(outcome: Outcome, target: Target, workspace: str) -> str:
    """Say where the shell is, and why."""
    where = f"{target.namespace}/{target.pod}, container {target.container} (the agent's image)"
    return f"✘ {outcome.message}\n  A shell in {workspace} of {where}; `exit` goes on and cleans up."


async def send(stream: ExecStream, tree: Path) -> None:
    """Send a file to the command."""
    with tree.open("rb") as file:
        while data := await asyncio.to_thread(file.read, PIECE):
            await stream.send(data)


def failed(why: str) -> ActionFailed:
    """Return the failure of a workspace that could not be filled."""
    return ActionFailed(
        Stage.SETUP, Reason.REPOSITORY_FAILED, f"the tree could not be copied into the workspace: {why}"
    )
