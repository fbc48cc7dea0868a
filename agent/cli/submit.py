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
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO

import grpc

from agent.aio import cancel_and_wait, first_of
from agent.console import terminal_text
from agent.console.follower import Follower, Interruptions, OutputClosed, ViewFailed, print_notice
from agent.console.open_view import open_view
from agent.console.reports import report_files
from agent.console.reports.run_report import ExitCode
from agent.domain.artifacts import FileData, FileEnd, FileStart
from agent.domain.errors import AgentError
from agent.local_scheduler.storage.uploads import Upload, UploadRefused
from agent.pipeline.wire import local_pb2 as wire
from agent.pipeline.wire import local_pb2_grpc
from agent.protocol.grpc_transport import TokenInvalid, keepalive_options, open_channel, token_metadata
from agent.protocol.translate import UploadEnd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from agent.console.reports.run_report import ActionReport
    from agent.console.view import View
    from agent.pipeline.parser import Pipeline

OPTIONS = [*keepalive_options(), ("grpc.max_receive_message_length", 4 << 20)]
# Status codes after which a later call can succeed. When a connection breaks, gRPC reports any one of these codes.
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
    timestamps: bool = False,
    reports: Sequence[Path] = (),
    artifacts: Path | None = None,
    give_up: float = 60.0,
    interruptions: Interruptions | None = None,
    stream: TextIO | None = None,
) -> ExitCode:
    """Submit a pipeline, show it to its end, and return the exit code.

    `reports`: files for a summary. `artifacts`: folder for logs and files. `give_up`: seconds without any answer until
    the client gives up.
    """
    view = open_view(output, stream or sys.stdout, timestamps=timestamps)
    own = Interruptions()
    with contextlib.ExitStack() as stack:
        if interruptions is None:
            stack.enter_context(own.count_signals())
        try:
            async with target.channel() as channel:
                client = Client(target, local_pb2_grpc.LocalStub(channel), view, give_up, artifacts)
                code = await client.run(pipeline, secrets, interruptions or own)
                for file in reports if client.follower.report.complete else ():
                    await asyncio.to_thread(report_files.write, client.follower.report, file)
                return code
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
        except (Unreachable, report_files.ReportFailed) as error:
            print_notice(str(error))
            return ExitCode.INFRASTRUCTURE


@contextlib.asynccontextmanager
async def scheduler_stub(target: Target) -> AsyncIterator[local_pb2_grpc.LocalAsyncStub]:
    """Yield a stub for single calls.

    Raises:
        Unreachable: the scheduler does not answer, or refuses a call in the caller's `async with` block.
    """
    try:
        async with target.channel() as channel:
            yield local_pb2_grpc.LocalStub(channel)
    except grpc.aio.AioRpcError as error:
        words = terminal_text.one_line(error.details() or "")
        raise Unreachable(f"the scheduler at {target.address}: {words}") from error


async def list_pipelines(target: Target) -> list[str]:
    """Return a line for each pipeline of a scheduler, oldest first.

    Raises:
        Unreachable: the scheduler does not answer, or refuses the call.
    """
    async with scheduler_stub(target) as stub:
        reply = await stub.List(wire.ListRequest(), metadata=target.metadata(), timeout=CANCEL_SECONDS)
    return [listed_line(each) for each in reply.pipelines]


def listed_line(pipeline: wire.ListedPipeline) -> str:
    """Return the line of a pipeline: id, state, actions that ended, local time of the submission, file."""
    submitted = datetime.fromtimestamp(pipeline.submitted, UTC).astimezone()
    counts = f"{pipeline.ended}/{pipeline.actions}"
    words = (pipeline.pipeline, f"{pipeline.state:9}", counts, f"{submitted:%Y-%m-%d %H:%M:%S}", pipeline.file_name)
    return "  ".join(terminal_text.one_line(word) for word in words)


async def cancel_pipeline(target: Target, pipeline: str) -> None:
    """Cancel every action of a pipeline.

    Raises:
        Unreachable: the scheduler does not answer, or knows no such pipeline.
    """
    async with scheduler_stub(target) as stub:
        request = wire.CancelRequest(pipeline=pipeline, message="cancelled by request")
        await stub.Cancel(request, metadata=target.metadata(), timeout=CANCEL_SECONDS)


class Client:
    """Submits one pipeline and follows it."""

    def __init__(
        self,
        target: Target,
        stub: local_pb2_grpc.LocalAsyncStub,
        view: View,
        give_up: float,
        artifacts: Path | None = None,
    ) -> None:
        self.target = target
        self.stub = stub
        self.follower = Follower(view)
        self.follower.report.local = False
        self.give_up = give_up
        self.artifacts = artifacts
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
        problem = await self.download(pipeline, self.artifacts) if self.artifacts else ""
        await self.follower.close()
        if problem:
            raise Unreachable(problem)
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

    async def download(self, pipeline: Pipeline, folder: Path) -> str:
        """Copy the logs and files of the pipeline into a folder. Return why the copy failed, or ""."""
        known = {action.name for action in pipeline.actions}
        self.follower.report.folder, self.follower.report.copied = str(folder), True
        try:
            for action in self.follower.report.actions.values():
                # The name becomes a path, so a name that the pipeline does not have is not used.
                if action.name in known:
                    await self.download_action(folder, action)
        except grpc.aio.AioRpcError as error:
            return f"the files could not be copied: {terminal_text.one_line(error.details() or '')}"
        except UploadRefused as error:
            return f"the files could not be copied: {error}"
        return ""

    async def download_action(self, folder: Path, action: ActionReport) -> None:
        """Copy the log and the files of one action. A file that is not complete is not kept."""
        upload = await asyncio.to_thread(Upload, folder, action.name, durable=False)
        try:
            for path, size in action.files.items():
                digest = b""
                async for part in self.parts(action.name, path):
                    start = [] if digest else [FileStart(path, part.mode, size)]
                    digest = digest or part.sha256
                    await asyncio.to_thread(upload.feed, [*start, FileData(part.data)])
                await asyncio.to_thread(upload.feed, [FileEnd(digest)])
            await asyncio.to_thread(upload.feed, [UploadEnd(len(action.files), action.size)])
            await asyncio.to_thread(upload.finish, [])
        finally:
            await asyncio.to_thread(upload.abandon)
        with (folder / f"{action.name}.log").open("wb") as log:
            async for part in self.parts(action.name, b""):
                await asyncio.to_thread(log.write, part.data)

    def parts(self, action: str, path: bytes) -> AsyncIterator[wire.FileData]:
        """Return the parts of a file of an action, or of its log if the path is empty."""
        request = wire.DownloadRequest(pipeline=self.id, action=action, path=path)
        return aiter(self.stub.Download(request, metadata=self.target.metadata()))

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
