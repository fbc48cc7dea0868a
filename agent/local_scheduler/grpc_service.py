"""The gRPC services of the local scheduler: one for agents and one for `sealci-agent submit`, on one port.

One task reads an agent's stream and another task writes it. The two tasks never wait for each other. A server lives
from `start` to `stop`. When it stops, every stream ends, and the agents keep their sessions until a scheduler answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import grpc
import structlog

from agent.domain.actions import Key
from agent.domain.errors import ActionFailed, AgentError
from agent.domain.session_state import Feature
from agent.local_scheduler.agent_stream import AgentStream, OutOfOrder
from agent.local_scheduler.local_service import FilesNotStored, LocalService, aborts
from agent.local_scheduler.storage.grants import ObjectGrants
from agent.local_scheduler.storage.inputs import InputReader, selected_inputs
from agent.local_scheduler.storage.store import StoreFailed
from agent.local_scheduler.storage.uploads import Upload, UploadRefused
from agent.pipeline.wire import local_pb2_grpc
from agent.protocol import translate
from agent.protocol.grpc_transport import server_credentials, server_options
from agent.protocol.wire import agent_pb2, agent_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from agent.local_scheduler.dispatcher import Dispatcher
    from agent.local_scheduler.local_service import Access
    from agent.local_scheduler.records import ActionRecord
    from agent.pipeline.events import FileStored

log = structlog.get_logger()

PROTOCOL_VERSION = 1
# The features of the contract that this scheduler has, and those that it has with an object store.
FEATURES = (Feature.SERVICES, Feature.INPUTS)
STORE_FEATURES = (Feature.OBJECTS, Feature.OBJECT_PACKS)
# A gRPC client may send at most one ping a second. A message has at most 4 MiB, the default of gRPC.
OPTIONS = server_options(1.0, ("grpc.max_receive_message_length", 4 << 20))


class AgentService(agent_pb2_grpc.SchedulerServicer):
    """The service that agents call. It lives as long as the server."""

    def __init__(self, dispatcher: Dispatcher, access: Access) -> None:
        self.dispatcher = dispatcher
        self.registry = dispatcher.registry
        self.access = access
        self.grants = ObjectGrants(dispatcher.options.objects)

    async def Connect(  # noqa: N802 - the contract's name
        self,
        requests: AsyncIterator[agent_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.SchedulerMessage],
    ) -> AsyncIterator[agent_pb2.SchedulerMessage]:
        """Serve the stream of one agent."""
        # The registration is read before the token is checked. If a call is aborted while the agent writes its first
        # message, the agent gets the status INTERNAL and not UNAUTHENTICATED.
        register = await self.read_registration(requests, context)
        await self.access.check_agent(context)
        if register.protocol_version != PROTOCOL_VERSION:
            why = f"protocol version {register.protocol_version} is not supported, only {PROTOCOL_VERSION}"
            refused = agent_pb2.Refused(why=agent_pb2.Refused.PROTOCOL_VERSION, message=why)
            yield agent_pb2.SchedulerMessage(refused=refused)
            return
        features, classes = translate.features(register.features), frozenset(register.classes)
        stream = AgentStream(register.agent_id, register.slots, features, classes)
        stream.send(agent_pb2.SchedulerMessage(registered=self.registered_message()))
        reader = asyncio.create_task(self.read(requests, stream, register), name=f"read {register.agent_id}")
        try:
            async for message in stream.outgoing():
                yield message
        finally:
            self.dispatcher.unregister(stream)
            reader.cancel()
            (ending,) = await asyncio.gather(reader, return_exceptions=True)
            if isinstance(ending, Exception):
                log.error("the stream of an agent failed", agent=stream.agent_id, exc_info=ending)

    def registered_message(self) -> agent_pb2.Registered:
        """Return the answer to a registration: the health interval and the grace period for the agent."""
        options = self.dispatcher.options
        return agent_pb2.Registered(
            health_interval=translate.duration(options.health_interval),
            resume_grace=translate.duration(options.resume_grace),
            scheduler="sealci-agent scheduler",
            features=[each.value for each in (*FEATURES, *(STORE_FEATURES if options.objects else ()))],
        )

    async def read_registration(
        self,
        requests: AsyncIterator[agent_pb2.AgentMessage],
        context: grpc.aio.ServicerContext[agent_pb2.AgentMessage, agent_pb2.SchedulerMessage],
    ) -> agent_pb2.Register:
        """Return the first message of a stream. Abort the call if it is no registration or does not come in time."""
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
        """Process the messages of a stream until the stream ends or the agent is silent for three health intervals."""
        limit = 3 * self.dispatcher.options.health_interval
        try:
            await self.dispatcher.register(stream, [translate.session_state(each) for each in register.sessions])
            while not stream.closed:
                async with asyncio.timeout(limit):
                    message = await anext(requests, None)
                if message is None:
                    return
                await self.process(stream, message)
        except TimeoutError:
            log.warning("an agent is silent, its stream is closed", agent=stream.agent_id, seconds=limit)
        except (OutOfOrder, StoreFailed, ActionFailed) as error:
            log.warning("the stream of an agent is closed", agent=stream.agent_id, why=str(error))
        except grpc.aio.AbortError as error:
            log.info("the stream of an agent broke", agent=stream.agent_id, why=str(error))
        finally:
            self.dispatcher.unregister(stream)

    async def process(self, stream: AgentStream, message: agent_pb2.AgentMessage) -> None:
        """Pass one message of an agent to the dispatcher."""
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
                try:
                    await self.dispatcher.receive(stream, event.key, event.seq, event.event)
                except (OutOfOrder, StoreFailed, ActionFailed):
                    raise
                except Exception as error:
                    # End only the action. If the stream ended instead, the agent would send the same event again on
                    # each new stream.
                    log.error("an event could not be processed", action=event.key.action_id, exc_info=error)
                    self.dispatcher.on_unreadable_event(stream, event.key, f"{type(error).__name__}: {error}")
            case _:
                log.debug("message of an unknown kind ignored", agent=stream.agent_id)

    async def UploadArtifacts(  # noqa: N802 - the contract's name
        self,
        requests: AsyncIterator[agent_pb2.ArtifactChunk],
        context: grpc.aio.ServicerContext[agent_pb2.ArtifactChunk, agent_pb2.UploadReceipt],
    ) -> agent_pb2.UploadReceipt:
        """Receive and store the artifacts of one action."""
        await self.access.check_agent(context)
        first = await anext(requests, None)
        if first is None or not first.HasField("header"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "an upload begins with its header")
        assert first is not None  # noqa: S101 - abort raises
        header = first.header
        async with aborts(context):
            return await self.upload(Key(header.action_id, header.attempt, header.claim), first, requests)
        raise AssertionError("abort raises")

    async def FetchInput(  # noqa: N802 - the contract's name
        self,
        request: agent_pb2.FetchInputRequest,
        context: grpc.aio.ServicerContext[agent_pb2.FetchInputRequest, agent_pb2.ArtifactChunk],
    ) -> AsyncIterator[agent_pb2.ArtifactChunk]:
        """Yield the files of one input of an action."""
        await self.access.check_agent(context)
        async with aborts(context):
            key = Key(request.action_id, request.attempt, request.claim)
            record = self.registry.record_for_transfer(key)
            inputs = selected_inputs(record)
            if not 0 < request.input <= len(inputs):
                raise UploadRefused(f"{request.action_id} has {len(inputs)} inputs, there is no {request.input}")
            reader = InputReader(self.registry.store.folder(record.state.pipeline), inputs[request.input - 1])
            chunks = reader.chunks()
            record.download = reader
            try:
                while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
                    yield chunk
                    self.registry.record_for_transfer(key)
            finally:
                record.download = None

    async def GrantObjects(  # noqa: N802 - the contract's name
        self,
        request: agent_pb2.GrantRequest,
        context: grpc.aio.ServicerContext[agent_pb2.GrantRequest, agent_pb2.GrantReply],
    ) -> agent_pb2.GrantReply:
        """Sign requests for objects of one action."""
        await self.access.check_agent(context)
        async with aborts(context):
            key = Key(request.action_id, request.attempt, request.claim)
            return await self.grants.grant(self.registry.record_for_transfer(key), key, request.objects)
        raise AssertionError("abort raises")

    async def CompleteObjects(  # noqa: N802 - the contract's name
        self,
        request: agent_pb2.CompleteRequest,
        context: grpc.aio.ServicerContext[agent_pb2.CompleteRequest, agent_pb2.CompleteReply],
    ) -> agent_pb2.CompleteReply:
        """Complete or abort objects that one action puts in parts."""
        await self.access.check_agent(context)
        async with aborts(context):
            key = Key(request.action_id, request.attempt, request.claim)
            self.registry.record_for_transfer(key)
            return await self.grants.complete(key, request.objects)
        raise AssertionError("abort raises")

    async def upload(
        self, key: Key, first: agent_pb2.ArtifactChunk, requests: AsyncIterator[agent_pb2.ArtifactChunk]
    ) -> agent_pb2.UploadReceipt:
        """Receive files and store them in the folder of their action.

        Raises:
            StaleAttempt: the attempt is over, or another agent has claimed it.
            UploadRefused: the upload breaks the contract.
            FilesNotStored: the files cannot be written to the disk.
            StoreFailed: nothing more can be stored.
        """
        record = self.registry.record_for_transfer(key)
        store = self.registry.store
        folder = store.folder(record.state.pipeline)
        try:
            names = self.grants.names_of(key)
            upload = await asyncio.to_thread(
                Upload, folder, record.plan.name, durable=store.durable, object_names=names
            )
            record.upload = upload
            try:
                files = await self.store_upload(record, upload, key, first, requests)
            finally:
                record.upload = None
                await asyncio.shield(asyncio.to_thread(upload.abandon))
        except OSError as error:
            log.error("files cannot be stored", action=key.action_id, why=str(error))
            raise FilesNotStored(f"files cannot be stored: {error.strerror}") from error
        return agent_pb2.UploadReceipt(files=len(files), bytes=sum(each.size for each in files))

    async def store_upload(
        self,
        record: ActionRecord,
        upload: Upload,
        key: Key,
        first: agent_pb2.ArtifactChunk,
        requests: AsyncIterator[agent_pb2.ArtifactChunk],
    ) -> list[FileStored]:
        """Feed the chunks of a call to an upload, then store its files. Return the files."""
        chunk: agent_pb2.ArtifactChunk | None = first
        while chunk is not None:
            await asyncio.to_thread(upload.feed, [translate.part(part) for part in chunk.parts])
            chunk = await anext(requests, None)
        async with record.upload_lock:
            # The attempt can end while this call waits for the lock or for `finish`. `record_for_transfer` raises an
            # error if the attempt is over, so this method is called before and after `finish`.
            self.registry.record_for_transfer(key)
            files = await asyncio.to_thread(upload.finish, record.files)
            self.registry.record_for_transfer(key)
            await self.registry.store_files(record, files)
        return files


class CannotListen(AgentError):
    """The server cannot listen on its address, or a TLS file cannot be read."""


async def start(dispatcher: Dispatcher, address: str, access: Access) -> tuple[grpc.aio.Server, int]:
    """Start a server on an address. Return the server and its port.

    Raises:
        CannotListen: the server cannot listen on the address, or a TLS file cannot be read.
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
    """End every stream and stop the server."""
    dispatcher.stop()
    dispatcher.registry.close()
    await server.stop(dispatcher.options.stop_grace)
