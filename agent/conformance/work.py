"""How the tool gets actions into the queue of a scheduler that it does not know.

The contract with agents has no call that queues an action. So the tool uses the service `sealci.local.v1.Local` if the
scheduler serves it, or a shell command of the user, or it asks the user. A source lives as long as one run of the tool.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import grpc

from agent.conformance.player import Options, Target
from agent.domain.errors import AgentError
from agent.pipeline.wire import local_pb2 as wire
from agent.pipeline.wire import local_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = {"TOKEN": "conformance-secret"}
PIPELINE = """\
name: conformance
actions:
  probe: {configuration: {container: sealci.invalid/conformance}, commands: ["true"], secrets: [TOKEN]}
"""
# Seconds until a shell command of the user must have ended.
COMMAND_TIMEOUT = 60.0
# Number of characters of a shell command's output that are shown.
MAX_OUTPUT = 500


class NotQueued(AgentError):
    """No action could be queued or cancelled."""


class Source(Protocol):
    """Queues actions in the scheduler."""

    async def queue(self, count: int) -> None:
        """Queue actions with any image and commands.

        Raises:
            NotQueued: the actions could not be queued.
        """

    async def cancel(self, action_id: str) -> bool:
        """Cancel an action. Return False if this source cannot cancel.

        Raises:
            NotQueued: the action could not be cancelled.
        """

    async def close(self) -> None:
        """Cancel what is still queued, if this source can."""


class Pipelines:
    """Submits pipelines of one action each, as `sealci-agent submit` does."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self.channel = target.channel()
        self.stub = local_pb2_grpc.LocalStub(self.channel)
        self.ids: list[str] = []

    async def is_served(self) -> bool:
        """Return whether the scheduler serves the call `List` to this caller."""
        try:
            await self.stub.List(wire.ListRequest(), metadata=self.target.metadata(), timeout=self.timeout)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def queue(self, count: int) -> None:
        for _ in range(count):
            self.ids.append(uuid.uuid4().hex)
            request = wire.SubmitRequest(
                pipeline=self.ids[-1], file_name="conformance.yaml", text=PIPELINE, secrets=SECRET
            )
            call = self.stub.Submit(request, metadata=self.target.metadata(), timeout=self.timeout)
            try:
                # The first event comes when the pipeline is stored.
                await call.read()
                call.cancel()
            except grpc.aio.AioRpcError as error:
                raise NotQueued(f"Submit failed: {error.code().name} {error.details()}") from error

    async def cancel(self, action_id: str) -> bool:
        request = wire.CancelRequest(pipeline=action_id.partition("/")[0], message="conformance")
        try:
            await self.stub.Cancel(request, metadata=self.target.metadata(), timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            raise NotQueued(f"Cancel failed: {error.code().name} {error.details()}") from error
        return True

    async def close(self) -> None:
        for each in self.ids:
            with suppress(NotQueued):
                await self.cancel(each)
        await self.channel.close()


class Commands:
    """Runs shell commands of the user."""

    def __init__(self, submit: str, cancel: str) -> None:
        self.submit = submit
        self.cancel_command = cancel

    async def queue(self, count: int) -> None:
        await run_command(self.submit, ACTIONS=str(count))

    async def cancel(self, action_id: str) -> bool:
        if self.cancel_command:
            await run_command(self.cancel_command, ACTION_ID=action_id)
        return bool(self.cancel_command)

    async def close(self) -> None:
        """Do nothing: the tool ends the actions that it got."""


class ByHand:
    """Asks the user to queue the actions."""

    def __init__(self, notify: Callable[[str], None], options: Options) -> None:
        self.notify = notify
        self.options = options

    async def queue(self, count: int) -> None:
        self.notify(
            f"queue {count} actions now, with any image and commands, for agents of pool {self.options.pool}"
            f" (waiting {self.options.wait:g} s for each)"
        )

    async def cancel(self, action_id: str) -> bool:  # noqa: ARG002 - the signature of Source
        return False

    async def close(self) -> None:
        """Do nothing: the tool ends the actions that it got."""


async def run_command(command: str, **variables: str) -> None:
    """Run a shell command of the user with these variables.

    Raises:
        NotQueued: the command failed, or did not end in time.
    """
    process = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        command,
        env=os.environ | variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        raise NotQueued(f"{command!r} did not end in {COMMAND_TIMEOUT:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        text = output.decode("utf-8", "replace").strip()[:MAX_OUTPUT]
        raise NotQueued(f"{command!r} exited with {process.returncode}: {text}")


async def open_source(target: Target, options: Options, notify: Callable[[str], None]) -> Source:
    """Return the source for this scheduler: the user's command, else the service `Local`, else the user."""
    if options.submit:
        return Commands(options.submit, options.cancel)
    pipelines = Pipelines(target, options.timeout)
    if await pipelines.is_served():
        return pipelines
    await pipelines.close()
    return ByHand(notify, options)
