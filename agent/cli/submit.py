"""`sealci-agent submit`: a pipeline on a scheduler that runs elsewhere, shown here as if it ran here.

The pipeline is named here, so that a submission whose answer was lost can be made again; a watch that broke goes on at
the next event. Without any answer for a while it is given up, and the pipeline goes on alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets as randomness
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import grpc

from agent.console.follower import Follower, Interruptions, OutputClosed, end, say
from agent.console.open_view import open_view
from agent.console.run_report import ExitCode
from agent.domain.errors import AgentError
from agent.pipeline.wire import local_pb2 as wire
from agent.pipeline.wire import local_pb2_grpc
from agent.protocol.grpc_transport import TokenInvalid, keepalive_options, open_channel, token_metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from agent.console.view import View
    from agent.pipeline.parser import Pipeline

OPTIONS = [*keepalive_options(), ("grpc.max_receive_message_length", 4 << 20)]
AGAIN = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
)
PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """A scheduler and how to speak to it. Without `tls`, plaintext."""

    address: str
    token_file: Path | None = None
    tls: bool = True
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""

    def channel(self) -> grpc.aio.Channel:
        """Open a channel.

        Raises:
            FileUnreadable: a file of it cannot be read.
        """
        return open_channel(self.address, OPTIONS, self if self.tls else None, server_name=self.server_name)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what every call carries.

        Raises:
            FileUnreadable: the token cannot be read.
            TokenInvalid: the file holds no token.
        """
        return token_metadata(self.token_file)


class Unreachable(AgentError):
    """The scheduler does not answer, or refuses."""


async def submit(
    target: Target,
    pipeline: Pipeline,
    *,
    secrets: Mapping[str, str],
    output: str = "auto",
    give_up: float = 60.0,
    interruptions: Interruptions | None = None,
    stream: TextIO | None = None,
) -> ExitCode:
    """Submit a pipeline and show it to its end; the code says how it went. `give_up`: seconds without any answer."""
    view = open_view(output, stream or sys.stdout)
    own = Interruptions()
    with contextlib.ExitStack() as stack:
        if interruptions is None:
            stack.enter_context(own.listening())
        try:
            async with target.channel() as channel:
                client = Client(target, local_pb2_grpc.LocalStub(channel), view, give_up)
                return await client.run(pipeline, secrets, interruptions or own)
        except OutputClosed:
            return ExitCode.INTERRUPTED
        except OSError as error:
            say(f"{error.filename}: {error.strerror}")
            return ExitCode.USAGE
        except TokenInvalid as error:
            say(str(error))
            return ExitCode.USAGE
        except Unreachable as error:
            say(str(error))
            return ExitCode.INFRASTRUCTURE


class Client:
    """One submission."""

    def __init__(self, target: Target, stub: local_pb2_grpc.LocalAsyncStub, view: View, give_up: float) -> None:
        self.target = target
        self.stub = stub
        self.follower = Follower(view)
        self.give_up = give_up
        self.id = randomness.token_hex(5)

    async def run(self, pipeline: Pipeline, secrets: Mapping[str, str], interruptions: Interruptions) -> ExitCode:
        """Submit and follow; the first interruption cancels, the second leaves."""
        following = asyncio.create_task(self.follow(pipeline, secrets), name="follow")
        first = asyncio.create_task(interruptions.first.wait(), name="interrupted")
        second = asyncio.create_task(interruptions.second.wait(), name="interrupted again")
        try:
            await asyncio.wait({following, first}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                await self.cancel()
                await asyncio.wait({following, second}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return ExitCode.INTERRUPTED
            following.result()
        finally:
            for task in (following, first, second):
                await end(task)
        await self.follower.close()
        return ExitCode.INTERRUPTED if interruptions.first.is_set() else self.follower.report.exit_code

    async def follow(self, pipeline: Pipeline, secrets: Mapping[str, str]) -> None:
        """Follow the pipeline to its end, over lost connections.

        Raises:
            Unreachable: for too long, or for good.
        """
        loop = asyncio.get_running_loop()
        request = wire.SubmitRequest(pipeline=self.id, file_name=pipeline.source, text=pipeline.text, secrets=secrets)
        deadline = loop.time() + self.give_up
        while not self.follower.report.ended:
            before = self.follower.position
            try:
                await self.follower.follow(self.events(request))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND and self.follower.position:
                    say("the scheduler has lost its memory: submitted again")
                    self.follower.position = 0
                    continue
                if self.follower.position > before:
                    deadline = loop.time() + self.give_up
                if error.code() not in AGAIN or loop.time() >= deadline:
                    raise Unreachable(f"the scheduler at {self.target.address}: {error.details()}") from error
                await asyncio.sleep(PAUSE)

    def events(self, request: wire.SubmitRequest) -> AsyncIterator[wire.PipelineEvent]:
        """Begin, or go on after the last event that was shown."""
        metadata = self.target.metadata()
        if self.follower.position:
            watch = wire.WatchRequest(pipeline=self.id, after=self.follower.position)
            return aiter(self.stub.Watch(watch, metadata=metadata, wait_for_ready=False))
        return aiter(self.stub.Submit(request, metadata=metadata, wait_for_ready=False))

    async def cancel(self) -> None:
        """Ask the scheduler to end the pipeline."""
        say("interrupted: cancelling; once more to leave at once")
        request = wire.CancelRequest(pipeline=self.id, message="interrupted")
        try:
            await self.stub.Cancel(request, metadata=self.target.metadata(), timeout=10.0)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                say(f"the pipeline could not be cancelled: {error.details()}")
