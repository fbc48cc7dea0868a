"""The gRPC service for the commands that submit, watch, cancel, list and download, such as `sealci-agent submit`.

The service lives as long as the server and keeps no state of its own. The module also has the checks of tokens and the
handling of errors, which the service for agents uses too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc

from agent.domain.errors import AgentError
from agent.domain.outcome import Result
from agent.local_scheduler.registry import PipelineExists, PipelineIdInvalid, PipelineUnknown, StaleAttempt
from agent.local_scheduler.storage.downloads import open_stored
from agent.local_scheduler.storage.grants import StoreAway, StoreRefuses
from agent.local_scheduler.storage.inputs import FileGone, InputsUnusable
from agent.local_scheduler.storage.store import StoreFailed
from agent.local_scheduler.storage.uploads import UploadRefused
from agent.objects.errors import StoreError
from agent.pipeline import parser
from agent.pipeline.file_errors import PipelineFileError
from agent.pipeline.wire import local_pb2, local_pb2_grpc
from agent.protocol.grpc_transport import bearer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.local_scheduler.dispatcher import Dispatcher
    from agent.local_scheduler.records import PipelineRun
    from agent.pipeline.events import FileStored


@dataclass(frozen=True, slots=True)
class Access:
    """The files that decide which calls are accepted. They are read at each call, so that they can be replaced.

    If `token_file` is None, no token is required. If `cert_file` and `key_file` are None, the server has no TLS. If
    `ca_file` is None, the callers need no certificate. If `submit_token_file` is None, the token of agents is also the
    token of people who submit pipelines.
    """

    token_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None
    submit_token_file: Path | None = None

    async def check_agent(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Abort the call with UNAUTHENTICATED unless its metadata carries the token of agents."""
        await self.check(context, self.token_file)

    async def check_submit(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Abort the call with UNAUTHENTICATED unless its metadata carries the token of people who submit."""
        await self.check(context, self.submit_token_file or self.token_file)

    async def check(self, context: grpc.aio.ServicerContext[Any, Any], file: Path | None) -> None:
        if file is None:
            return
        token = (await asyncio.to_thread(file.read_text, encoding="utf-8")).strip()
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        text = sent if isinstance(sent, str) else ""
        if not token or not hmac.compare_digest(text.encode(), bearer(token).encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")


class FilesNotStored(AgentError):
    """The files of an upload cannot be written to the disk."""


# Maximum number of bytes of a file in one message.
PART_BYTES = 256 << 10


class FileUnknown(AgentError):
    """The action has no file with the requested path."""


# The errors that abort a call, with the status of the call. The error's message becomes the details of the status.
STATUS_CODES: dict[type[AgentError], grpc.StatusCode] = {
    PipelineFileError: grpc.StatusCode.INVALID_ARGUMENT,
    PipelineIdInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    PipelineExists: grpc.StatusCode.ALREADY_EXISTS,
    PipelineUnknown: grpc.StatusCode.NOT_FOUND,
    FileUnknown: grpc.StatusCode.NOT_FOUND,
    FileGone: grpc.StatusCode.NOT_FOUND,
    InputsUnusable: grpc.StatusCode.NOT_FOUND,
    StoreFailed: grpc.StatusCode.UNAVAILABLE,
    StoreAway: grpc.StatusCode.UNAVAILABLE,
    StoreRefuses: grpc.StatusCode.FAILED_PRECONDITION,
    StaleAttempt: grpc.StatusCode.FAILED_PRECONDITION,
    UploadRefused: grpc.StatusCode.INVALID_ARGUMENT,
    FilesNotStored: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@contextlib.asynccontextmanager
async def aborts(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """If the `with` block raises an error of `STATUS_CODES`, abort the call with the status of this error."""
    try:
        yield
    except tuple(STATUS_CODES) as error:
        await context.abort(STATUS_CODES[type(error)], str(error))


class LocalService(local_pb2_grpc.LocalServicer):
    """The service that commands such as `sealci-agent submit` call. It lives as long as the server."""

    def __init__(self, dispatcher: Dispatcher, access: Access) -> None:
        self.dispatcher = dispatcher
        self.registry = dispatcher.registry
        self.access = access

    async def Submit(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.SubmitRequest,
        context: grpc.aio.ServicerContext[local_pb2.SubmitRequest, local_pb2.PipelineEvent],
    ) -> AsyncIterator[local_pb2.PipelineEvent]:
        """Queue a pipeline and yield its events."""
        await self.access.check_submit(context)
        async with aborts(context):
            pipeline = await asyncio.to_thread(parser.parse, request.text, request.file_name)
            await self.dispatcher.submit(request.pipeline, pipeline, request.secrets)
            async for event in self.registry.watch(request.pipeline):
                yield event

    async def Watch(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[local_pb2.WatchRequest, local_pb2.PipelineEvent],
    ) -> AsyncIterator[local_pb2.PipelineEvent]:
        """Yield the events of a pipeline after a position."""
        await self.access.check_submit(context)
        async with aborts(context):
            async for event in self.registry.watch(request.pipeline, request.after):
                yield event

    async def Cancel(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.CancelRequest,
        context: grpc.aio.ServicerContext[local_pb2.CancelRequest, local_pb2.CancelReply],
    ) -> local_pb2.CancelReply:
        """Cancel every action of a pipeline. A repeated request has no effect."""
        await self.access.check_submit(context)
        async with aborts(context):
            self.dispatcher.cancel(request.pipeline, request.message or "cancelled by request")
        return local_pb2.CancelReply()

    async def List(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.ListRequest,  # noqa: ARG002 - the contract's signature
        context: grpc.aio.ServicerContext[local_pb2.ListRequest, local_pb2.ListReply],
    ) -> local_pb2.ListReply:
        """Return the pipelines that the scheduler knows, oldest first."""
        await self.access.check_submit(context)
        return local_pb2.ListReply(pipelines=[listed(run) for run in self.registry.runs.values()])

    async def Download(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.DownloadRequest,
        context: grpc.aio.ServicerContext[local_pb2.DownloadRequest, local_pb2.FileData],
    ) -> AsyncIterator[local_pb2.FileData]:
        """Yield the parts of a stored file. Only files of the action's list can be read."""
        await self.access.check_submit(context)
        async with aborts(context):
            record = self.registry.get(request.pipeline).records.get(request.action)
            files = {each.path: each for each in record.files} if record else {}
            if record is None or (request.path and request.path not in files):
                raise FileUnknown(f"{request.pipeline}/{request.action} has no such file")
            found = files.get(request.path)
            if found is not None and found.uri:
                async for part in self.object_parts(found):
                    yield part
                return
            folder = self.registry.store.folder(request.pipeline)
            try:
                handle = await asyncio.to_thread(open_stored, folder, request.action, request.path)
            except OSError as error:
                raise FileUnknown(f"the file cannot be read: {error.strerror}") from error
            with os.fdopen(handle, "rb") as file:
                mode = os.fstat(handle).st_mode & 0o777
                data = await asyncio.to_thread(file.read, PART_BYTES)
                yield local_pb2.FileData(data=data, mode=mode, sha256=found.sha256 if found else b"")
                while data := await asyncio.to_thread(file.read, PART_BYTES):
                    yield local_pb2.FileData(data=data)

    async def object_parts(self, file: FileStored) -> AsyncIterator[local_pb2.FileData]:
        """Yield the parts of a file that is in the object store.

        Raises:
            FileUnknown: the scheduler does not read the store, or the store does not send the file.
        """
        store = self.dispatcher.options.objects
        if store is None or not (key := store.key_of(file.uri)):
            raise FileUnknown(f"the file is in an object store that this scheduler does not read: {file.uri}")
        yield local_pb2.FileData(mode=file.mode, sha256=file.sha256)
        try:
            async with contextlib.aclosing(store.stream(key, file.offset, file.size)) as pieces:
                async for data in pieces:
                    yield local_pb2.FileData(data=data)
        except StoreError as error:
            raise FileUnknown(f"the file cannot be read: {error.message}") from error


def listed(run: PipelineRun) -> local_pb2.ListedPipeline:
    """Return what `List` sends about a pipeline: no secrets, no commands."""
    outcomes = [record.state.outcome for record in run.records.values()]
    results = {outcome.result for outcome in outcomes if outcome is not None}
    state = "running"
    if run.pipeline.ended:
        state = next((each for each in ("failed", "cancelled") if Result(each) in results), "succeeded")
    return local_pb2.ListedPipeline(
        pipeline=run.pipeline.id,
        file_name=run.pipeline.source,
        submitted=run.pipeline.submitted,
        state=state,
        actions=len(outcomes),
        ended=sum(outcome is not None for outcome in outcomes),
    )
