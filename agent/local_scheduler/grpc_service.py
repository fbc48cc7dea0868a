"""The scheduler for one machine on the wire: the agents' service and the people's, on one port.

A stream is read by one task and written by another that never wait for each other. A server lives from `start` to
`stop`; stopping ends every stream, and agents go on with what they run until one answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from agent.domain.actions import Key
from agent.domain.errors import ActionFailed, AgentError
from agent.local_scheduler.agent_stream import AgentStream, OutOfOrder
from agent.local_scheduler.registry import PipelineExists, PipelineUnknown, StaleAttempt
from agent.local_scheduler.store import StoreFailed
from agent.local_scheduler.uploads import Upload, UploadRefused
from agent.pipeline import parser
from agent.pipeline.wire import local_pb2, local_pb2_grpc
from agent.pipeline.yaml_document import PipelineFileError
from agent.protocol import translate
from agent.protocol.grpc_transport import bearer, server_credentials, server_options
from agent.protocol.wire import agent_pb2, agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from agent.local_scheduler.dispatcher import Dispatcher
    from agent.local_scheduler.registry import PipelineRegistry

log = structlog.get_logger()

PROTOCOL_VERSION = 1
OPTIONS = server_options(1.0, ("grpc.max_receive_message_length", 4 << 20))
STOP_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Access:
    """Who may call: files that are read anew at each call, so that they can be rotated. None: not asked for."""

    token_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    ca_file: Path | None = None

    async def check(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """End the call unless it brings the token."""
        if self.token_file is None:
            return
        token = (await asyncio.to_thread(self.token_file.read_text, encoding="utf-8")).strip()
        sent = dict(context.invocation_metadata() or ()).get("authorization", "")
        text = sent if isinstance(sent, str) else ""
        if not token or not hmac.compare_digest(text.encode(), bearer(token).encode()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is missing or wrong")


class AgentService(agent_pb2_grpc.SchedulerServicer):
    """What agents call."""

    def __init__(self, dispatcher: Dispatcher, access: Access) -> None:
        self.dispatcher = dispatcher
        self.registry = dispatcher.registry
        self.access = access

    async def Connect(  # noqa: N802 - the contract's name
        self,
        requests: AsyncIterator[agent_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.SchedulerMessage],
    ) -> AsyncIterator[agent_pb2.SchedulerMessage]:
        """Hold the stream of one replica."""
        # Read first: a call that is ended while its first message is being written ends with INTERNAL at the caller.
        register = await self.first(requests, context)
        await self.access.check(context)
        if register.protocol_version != PROTOCOL_VERSION:
            why = f"protocol version {register.protocol_version} is not spoken here, only {PROTOCOL_VERSION}"
            refused = agent_pb2.Refused(why=agent_pb2.Refused.PROTOCOL_VERSION, message=why)
            yield agent_pb2.SchedulerMessage(refused=refused)
            return
        stream = AgentStream(register.agent_id, register.slots)
        stream.send(agent_pb2.SchedulerMessage(registered=self.registered()))
        reader = asyncio.create_task(self.read(requests, stream, register), name=f"read {register.agent_id}")
        try:
            async for message in stream.outgoing():
                yield message
        finally:
            self.dispatcher.unregister(stream)
            reader.cancel()
            (ending,) = await asyncio.gather(reader, return_exceptions=True)
            if isinstance(ending, Exception):
                log.error("stream failed", agent=stream.agent_id, exc_info=ending)

    def registered(self) -> agent_pb2.Registered:
        """Say how this scheduler wants to be talked to."""
        options = self.dispatcher.options
        return agent_pb2.Registered(
            health_interval=translate.duration(options.health_interval),
            resume_grace=translate.duration(options.resume_grace),
            scheduler="sealci-agent scheduler",
        )

    async def first(
        self,
        requests: AsyncIterator[agent_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.SchedulerMessage],
    ) -> agent_pb2.Register:
        """Return the registration that a stream begins with, or end the call."""
        message = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.dispatcher.options.register_timeout):
                message = await anext(requests, None)
        if message is None or message.WhichOneof("message") != "register" or not message.register.agent_id:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with Register, with an agent_id")
        assert message is not None  # noqa: S101 - abort raises
        return message.register

    async def read(
        self, requests: AsyncIterator[agent_pb2.AgentMessage], stream: AgentStream, register: agent_pb2.Register
    ) -> None:
        """Read a stream to its end, and close it then: also when the agent was silent for three intervals."""
        limit = 3 * self.dispatcher.options.health_interval
        try:
            await self.dispatcher.register(stream, [translate.session_state(each) for each in register.sessions])
            while not stream.closed:
                async with asyncio.timeout(limit):
                    message = await anext(requests, None)
                if message is None:
                    return
                await self.take(stream, message)
        except TimeoutError:
            log.warning("agent silent", agent=stream.agent_id, seconds=limit)
        except (OutOfOrder, StoreFailed, ActionFailed) as error:
            log.warning("stream ended", agent=stream.agent_id, why=str(error))
        except grpc.aio.AbortError as error:
            log.info("stream broke", agent=stream.agent_id, why=str(error))
        finally:
            self.dispatcher.unregister(stream)

    async def take(self, stream: AgentStream, message: agent_pb2.AgentMessage) -> None:
        """Take one message."""
        match message.WhichOneof("message"):
            case "health":
                self.dispatcher.update_health(stream, translate.health(message.health))
            case "adopted":
                await self.dispatcher.answer_session(stream, translate.session_state(message.adopted))
            case "event":
                try:
                    event = translate.event(message.event)
                except ActionFailed as error:
                    self.dispatcher.on_unreadable_event(stream, translate.key(message.event), error.message)
                    return
                await self.dispatcher.receive(stream, event.key, event.seq, event.event)
            case _:
                log.debug("message of an unknown kind ignored", agent=stream.agent_id)

    async def UploadArtifacts(  # noqa: N802 - the contract's name
        self,
        requests: AsyncIterator[agent_pb2.ArtifactChunk],
        context: grpc.aio.ServicerContext[agent_pb2.ArtifactChunk, agent_pb2.UploadReceipt],
    ) -> agent_pb2.UploadReceipt:
        """Take the files of one action."""
        await self.access.check(context)
        first = await anext(requests, None)
        if first is None or not first.HasField("header"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an upload begins with its header")
        assert first is not None  # noqa: S101 - abort raises
        header = first.header
        try:
            return await self.upload(Key(header.action_id, header.attempt, header.claim), first, requests)
        except StaleAttempt as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except UploadRefused as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except OSError as error:
            log.error("files cannot be stored", action=header.action_id, why=str(error))
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"files cannot be stored: {error.strerror}")
        raise AssertionError("abort raises")

    async def upload(
        self, key: Key, first: agent_pb2.ArtifactChunk, requests: AsyncIterator[agent_pb2.ArtifactChunk]
    ) -> agent_pb2.UploadReceipt:
        """Receive files and put them into their place."""
        record = self.registry.record_for_upload(key)
        store = self.registry.store
        folder = store.folder(record.state.pipeline)
        upload = await asyncio.to_thread(Upload, folder, record.plan.name, durable=store.durable)
        record.upload = upload
        try:
            chunk: agent_pb2.ArtifactChunk | None = first
            while chunk is not None:
                await asyncio.to_thread(upload.feed, [translate.part(part) for part in chunk.parts])
                chunk = await anext(requests, None)
            async with record.upload_lock:
                self.registry.record_for_upload(key)
                files = await asyncio.to_thread(upload.finish, record.files)
                self.registry.record_for_upload(key)
                await self.registry.store_files(record, files)
        finally:
            record.upload = None
            await asyncio.shield(asyncio.to_thread(upload.abandon))
        return agent_pb2.UploadReceipt(files=len(files), bytes=sum(each.size for each in files))


class LocalService(local_pb2_grpc.LocalServicer):
    """What `submit` calls."""

    def __init__(self, dispatcher: Dispatcher, access: Access) -> None:
        self.dispatcher = dispatcher
        self.registry: PipelineRegistry = dispatcher.registry
        self.access = access

    async def Submit(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.SubmitRequest,
        context: grpc.aio.ServicerContext[local_pb2.SubmitRequest, local_pb2.PipelineEvent],
    ) -> AsyncIterator[local_pb2.PipelineEvent]:
        """Queue a pipeline and tell what happens."""
        await self.access.check(context)
        try:
            asked = await asyncio.to_thread(parser.parse, request.text, request.file_name)
            await self.dispatcher.submit(request.pipeline, asked, request.secrets)
        except (PipelineFileError, ValueError) as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except PipelineExists as error:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, str(error))
        except StoreFailed as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        async for event in self.watch(request.pipeline, 0, context):
            yield event

    async def Watch(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.WatchRequest,
        context: grpc.aio.ServicerContext[local_pb2.WatchRequest, local_pb2.PipelineEvent],
    ) -> AsyncIterator[local_pb2.PipelineEvent]:
        """Tell what happens after a position."""
        await self.access.check(context)
        async for event in self.watch(request.pipeline, request.after, context):
            yield event

    async def watch(
        self, run_id: str, after: int, context: grpc.aio.ServicerContext[Any, local_pb2.PipelineEvent]
    ) -> AsyncIterator[local_pb2.PipelineEvent]:
        """Yield what happens after a position, or end the call."""
        try:
            async for event in self.registry.watch(run_id, after):
                yield event
        except PipelineUnknown as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except StoreFailed as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))

    async def Cancel(  # noqa: N802 - the contract's name
        self,
        request: local_pb2.CancelRequest,
        context: grpc.aio.ServicerContext[local_pb2.CancelRequest, local_pb2.CancelReply],
    ) -> local_pb2.CancelReply:
        """End every action of a pipeline."""
        await self.access.check(context)
        try:
            self.dispatcher.cancel(request.pipeline, request.message or "cancelled by request")
        except PipelineUnknown as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except StoreFailed as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return local_pb2.CancelReply()


class CannotListen(AgentError):
    """The address cannot be listened on."""


async def start(dispatcher: Dispatcher, address: str, access: Access) -> tuple[grpc.aio.Server, int]:
    """Serve on an address and return the server and its port.

    Raises:
        CannotListen: the address, or a file of TLS, cannot be used.
    """
    server = grpc.aio.server(options=OPTIONS)
    agent_pb2_grpc.add_SchedulerServicer_to_server(AgentService(dispatcher, access), server)
    local_pb2_grpc.add_LocalServicer_to_server(LocalService(dispatcher, access), server)
    try:
        credentials = server_credentials(access)
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except (RuntimeError, OSError) as error:
        raise CannotListen(f"cannot listen on {address}: {error}") from error
    await server.start()
    return server, port


async def stop(server: grpc.aio.Server, dispatcher: Dispatcher) -> None:
    """End every stream and the server."""
    dispatcher.stop()
    dispatcher.registry.close()
    await server.stop(STOP_GRACE)
