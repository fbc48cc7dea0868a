"""The options of a person at the terminal of `run`: upload a working tree, open a shell after a failure, keep pods.

`DebugOptions` comes from the command line of the process that also is the agent, and lives as long as the process. The
protocol of the scheduler does not carry these options. An agent that serves a scheduler has no `DebugOptions`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from agent.aio import cancelled_on_exit
from agent.cluster import packaging
from agent.cluster.api.exec import ExecStream
from agent.cluster.environment.interactive import shell as shell_module
from agent.cluster.pod.action_order import shell_variables
from agent.cluster.pod.fields import container_status, is_running
from agent.cluster.pod.manifest import GO
from agent.domain.errors import ActionFailed, ClusterError, Reason, Stage
from agent.domain.json import Object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from agent.cluster.api.client import Client
    from agent.cluster.api.container_ref import ContainerRef
    from agent.cluster.environment.context import Context
    from agent.cluster.pod.manifest import Plan
    from agent.domain.outcome import Outcome


# Number of bytes that are read at once from the tar file of the working tree.
CHUNK_BYTES = 64 << 10
# Seconds until an upload of the working tree fails.
UPLOAD_SECONDS = 1800.0


def show_nothing(_action_id: str, _what: str, _done: int, _size: int) -> None:
    """Show no progress."""


@dataclass(frozen=True, slots=True)
class DebugOptions:
    """The options of the person who started `run`, for all its environments.

    Owned by the command line, lives as long as the process. `tree` is a tar file with the content of the workspace.
    `shell` opens a shell in the workspace of a failed action. `keep` leaves every pod in the cluster. `screen` hands
    the terminal to the shell. `show_moved` gets the id of an action, what is copied for it, how many bytes have been
    moved, and how many there are. The size 0 ends the display.
    """

    screen: Callable[[], AbstractAsyncContextManager[None]]
    tree: Path | None = None
    keep: bool = False
    shell: bool = False
    show_moved: Callable[[str, str, int, int], None] = show_nothing

    async def upload_tree(
        self,
        client: Client,
        target: ContainerRef,
        workspace: str,
        notify: Callable[[str], Awaitable[None]],
        *,
        action_id: str,
        gated: bool,
        inputs: bool,
    ) -> None:
        """Extract the tar file `self.tree` into the folder `workspace` of container `target`.

        The supervisor starts the commands when the upload is complete and, if `gated`, all services are ready. If the
        action has `inputs`, their copy is complete before that too. `notify` is called before the upload, with a
        sentence that states the size of the tree.

        Raises:
            ActionFailed: the upload failed.
        """
        if self.tree is None:
            return
        tree, size = self.tree, self.tree.stat().st_size
        await notify(f"copying the working tree, {size / 1e6:.1f} MB")
        start = ("", "") if inputs else ("", packaging.GATE) if gated else (packaging.SNAPSHOT, GO)
        argv = [*packaging.receive_tree_program(), workspace, *start, str(size)]
        stream = ExecStream(client, target, argv, seconds=UPLOAD_SECONDS, stdin=True)
        try:
            async with stream:
                copy = send_file(stream, tree, partial(self.show_moved, action_id, "the working tree"), size)
                sender = asyncio.create_task(copy, name=f"tree for {target.pod}")
                async with cancelled_on_exit(sender):
                    async for _ in stream:
                        pass
            if stream.exit_code:
                last_line = bytes(stream.stderr).decode("utf-8", "replace").strip().rpartition("\n")[2]
                raise upload_failure(last_line or f"exit code {stream.exit_code}")
        except ClusterError as error:
            raise upload_failure(error.message) from error
        finally:
            self.show_moved(action_id, "", 0, 0)

    async def open_shell(
        self, context: Context, plan: Plan, pod: Object, outcome: Outcome, helper: ContainerRef
    ) -> None:
        """Give the terminal to a shell in the workspace of a failed action until the person leaves the shell.

        The shell runs in the image of the action, or in container `helper` if the cluster does not allow this. Without
        option `shell`, or if the helper does not run, do nothing.
        """
        if not self.shell or not is_running(container_status(pod.get("status", {}), helper.container)):
            return
        workspace = context.settings.environment.workspace
        try:
            variables = shell_variables(plan, context.settings)
            target = await shell_module.start_like_action(context.client, plan.namespace, plan.name, variables)
            image = "the image and the variables of the action"
        except ClusterError as error:
            target, image = helper, f"the agent's image, not the action's: {error.message}"
        async with self.screen():
            print(greeting(outcome, target, workspace, image), flush=True)  # noqa: T201 - the shell owns the terminal
            try:
                await shell_module.run_shell(context.client, target, workspace)
            except ClusterError as error:
                print(f"the shell ended: {error.message}", flush=True)  # noqa: T201 - as above


def greeting(outcome: Outcome, target: ContainerRef, workspace: str, image: str) -> str:
    """Return the lines above the first prompt: why the action failed, and where the shell runs. `image` is a text."""
    place = f"{target.namespace}/{target.pod}, container {target.container} ({image})"
    return f"✘ {outcome.message}\n  A shell in {workspace} of {place}. After `exit` the agent cleans up."


async def send_file(stream: ExecStream, file: Path, show: Callable[[int, int], None], size: int) -> None:
    """Send a file of `size` bytes. `show` gets the number of bytes so far, and the size."""
    sent = 0
    with file.open("rb") as opened:
        while data := await asyncio.to_thread(opened.read, CHUNK_BYTES):
            await stream.send(data)
            sent += len(data)
            show(sent, size)


def upload_failure(why: str) -> ActionFailed:
    return ActionFailed(
        Stage.SETUP, Reason.REPOSITORY_FAILED, f"the tree could not be copied into the workspace: {why}"
    )
