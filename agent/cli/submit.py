"""The client of `sealci-agent submit`: submit a pipeline to a scheduler that runs elsewhere, and show it.

The client chooses the id of the pipeline. It can therefore repeat a submission whose answer was lost, and no action
runs twice. After a broken connection the client continues at the next event. If no answer arrives for a while, the
client exits, and the pipeline continues without the client. A `Client` lives as long as the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets as randomness
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

import grpc

from agent.aio import cancel_and_wait, first_of
from agent.console import terminal_text
from agent.console.follower import Follower, Interruptions, OutputClosed, ViewFailed, print_notice
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
# Status codes after which a later call may succeed. When a connection breaks, gRPC reports any one of these codes.
RETRYABLE_CODES = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
)
# Part of gRPC's message if the scheduler's certificate is not trusted. Waiting does not change that.
UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
# Seconds between two tries to connect.
RETRY_SECONDS = 0.5
# Seconds without a connection until the command prints what it waits for.
NOTICE_SECONDS = 2.0
# Seconds that a scheduler has to answer a request to cancel.
CANCEL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """Address of a scheduler, with the files for TLS and the token. Without `tls`, the connection is plaintext."""

    address: str
    token_file: Path | None = None
    tls: bool = True
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str = ""

    def channel(self) -> grpc.aio.Channel:
        """Return a channel that is not yet connected.

        Raises:
            FileUnreadable: a file of TLS cannot be read.
        """
        return open_channel(self.address, OPTIONS, self if self.tls else None, server_name=self.server_name)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of every call: the token. The file is read at each call.

        Raises:
            FileUnreadable: the token file cannot be read.
            TokenInvalid: the file holds no token.
        """
        return token_metadata(self.token_file)


class Unreachable(AgentError):
    """The scheduler does not answer, or refuses the call."""


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
    """Submit a pipeline, show it to its end, and return the exit code.

    `give_up`: seconds without any answer until the client gives up.
    """
    view = open_view(output, stream or sys.stdout)
    own = Interruptions()
    with contextlib.ExitStack() as stack:
        if interruptions is None:
            stack.enter_context(own.count_signals())
        try:
            async with target.channel() as channel:
                client = Client(target, local_pb2_grpc.LocalStub(channel), view, give_up)
                return await client.run(pipeline, secrets, interruptions or own)
        except ViewFailed as error:
            print_notice(str(error))
            return ExitCode.INFRASTRUCTURE
        except OutputClosed:
            return ExitCode.INTERRUPTED
        except OSError as error:
            print_notice(f"{error.filename}: {error.strerror}")
            return ExitCode.USAGE
        except TokenInvalid as error:
            print_notice(str(error))
            return ExitCode.USAGE
        except Unreachable as error:
            print_notice(str(error))
            return ExitCode.INFRASTRUCTURE


class Client:
    """Submits one pipeline and follows it."""

    def __init__(self, target: Target, stub: local_pb2_grpc.LocalAsyncStub, view: View, give_up: float) -> None:
        self.target = target
        self.stub = stub
        self.follower = Follower(view)
        self.follower.report.local = False
        self.give_up = give_up
        self.id = randomness.token_hex(5)

    async def run(self, pipeline: Pipeline, secrets: Mapping[str, str], interruptions: Interruptions) -> ExitCode:
        """Submit the pipeline and follow it. The first interruption cancels the pipeline, the second exits at once."""
        follow_task = asyncio.create_task(self.follow(pipeline, secrets), name="follow")
        try:
            await first_of(follow_task, interruptions.first)
            if not follow_task.done():
                await self.cancel()
                await first_of(follow_task, interruptions.second)
            if not follow_task.done():
                return ExitCode.INTERRUPTED
            follow_task.result()
        finally:
            await cancel_and_wait(follow_task, ignore_errors=True)
        await self.follower.close()
        return ExitCode.INTERRUPTED if interruptions.first.is_set() else self.follower.report.exit_code

    async def follow(self, pipeline: Pipeline, secrets: Mapping[str, str]) -> None:
        """Follow the pipeline to its end. Reconnect after each lost connection.

        Raises:
            Unreachable: the scheduler does not answer for too long, or refuses the call.
        """
        loop = asyncio.get_running_loop()
        request = wire.SubmitRequest(pipeline=self.id, file_name=pipeline.source, text=pipeline.text, secrets=secrets)
        deadline = loop.time() + self.give_up
        notice_at = loop.time() + NOTICE_SECONDS
        while not self.follower.report.complete:
            before = self.follower.position
            try:
                await self.follower.follow(self.events(request))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND and self.follower.position:
                    print_notice("the scheduler lost its state, submitting the pipeline again")
                    self.follower.position = 0
                    continue
                if self.follower.position > before:
                    deadline = loop.time() + self.give_up
                untrusted = UNTRUSTED in (error.details() or "")
                if error.code() not in RETRYABLE_CODES or untrusted or loop.time() >= deadline:
                    # The scheduler chooses this text. On one line, the text cannot imitate a line of the output.
                    words = terminal_text.one_line(error.details() or "")
                    raise Unreachable(f"the scheduler at {self.target.address}: {words}") from error
                if loop.time() >= notice_at:
                    notice_at = float("inf")
                    left = f"giving up after {self.give_up:g} s without an answer"
                    await self.follower.notify(f"waiting for the scheduler at {self.target.address}, {left}")
                await asyncio.sleep(RETRY_SECONDS)

    def events(self, request: wire.SubmitRequest) -> AsyncIterator[wire.PipelineEvent]:
        """Submit the pipeline and yield its events. After a reconnect, continue after the last event that was shown."""
        metadata = self.target.metadata()
        if self.follower.position:
            watch = wire.WatchRequest(pipeline=self.id, after=self.follower.position)
            return aiter(self.stub.Watch(watch, metadata=metadata, wait_for_ready=False))
        return aiter(self.stub.Submit(request, metadata=metadata, wait_for_ready=False))

    async def cancel(self) -> None:
        """Ask the scheduler to cancel the pipeline."""
        print_notice("interrupted: cancelling. Press Ctrl-C again to exit at once")
        request = wire.CancelRequest(pipeline=self.id, message="interrupted")
        try:
            await self.stub.Cancel(request, metadata=self.target.metadata(), timeout=CANCEL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                words = terminal_text.one_line(error.details() or "")
                print_notice(f"the pipeline could not be cancelled: {words}")
