"""gRPC channels to the scheduler: address, TLS, token and keepalive from the settings.

A channel lives as long as one stream. The credential files are read at each connect, so that certificates and tokens
can be replaced while the agent runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpc import aio

from agent.protocol import grpc_transport
from agent.protocol.grpc_transport import FileUnreadable, TokenInvalid
from agent.protocol.wire import agent_pb2, agent_pb2_grpc
from agent.scheduler.call_status import ConnectionBroken

if TYPE_CHECKING:
    from agent.settings import SchedulerSettings

    Call = aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.SchedulerMessage]

# Maximum number of bytes of one message of the scheduler. The contract names the same limit.
MAX_MESSAGE_BYTES = 16 << 20
# Maximum number of seconds until an unanswered ping ends the connection. A lower value of the setting `keepalive`
# replaces this limit.
LONGEST_PING_TIMEOUT = 10.0


def open_channel(settings: SchedulerSettings) -> aio.Channel:
    """Return a channel to the scheduler that is not yet connected.

    Raises:
        ConnectionBroken: a TLS file cannot be read.
    """
    options = [
        # The agent notices a frozen scheduler within twice the time of the setting `keepalive`.
        *grpc_transport.keepalive_options(settings.keepalive, min(settings.keepalive, LONGEST_PING_TIMEOUT)),
        ("grpc.keepalive_permit_without_calls", 1),
        # The limit is far above the policy's limits on an action, so that an action that is too large fails alone. A
        # message over this limit ends the whole stream.
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        # With the shared pool, a new channel would inherit the back-off and the connection of the previous channel.
        ("grpc.use_local_subchannel_pool", 1),
        # A retried call would hide an outage from the reconnect loop.
        ("grpc.enable_retries", 0),
    ]
    tls = settings.tls if settings.tls.enabled else None
    try:
        return grpc_transport.open_channel(settings.address, options, tls, server_name=settings.tls.server_name)
    except FileUnreadable as error:
        raise ConnectionBroken("error", unreadable("scheduler.tls", error)) from error


def call_metadata(settings: SchedulerSettings) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call. The bearer token is read now.

    Raises:
        ConnectionBroken: the token file cannot be read or holds no token. The message never contains the file's text.
    """
    try:
        return grpc_transport.token_metadata(settings.token_file)
    except FileUnreadable as error:
        raise ConnectionBroken("error", unreadable("scheduler", error)) from error
    except TokenInvalid as error:
        raise ConnectionBroken("error", f"scheduler.token_file: {error}") from error


def unreadable(section: str, error: FileUnreadable) -> str:
    """Return a sentence about a file that cannot be read. It names the setting and the file."""
    return f"{section}.{error.field}: {error.filename} cannot be read: {error.strerror}"


def stub_of(channel: aio.Channel) -> agent_pb2_grpc.SchedulerAsyncStub:
    """Return the scheduler's methods on a channel."""
    return agent_pb2_grpc.SchedulerStub(channel)


class StreamChannels:
    """The channels of one stream: the stream's own, and one for uploads that is opened at the first upload.

    Uploads have a connection of their own because the calls of one connection share its flow-control window and its
    socket. On the stream's connection, a large file would delay the heartbeat.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings
        self.channel = open_channel(settings)
        self.upload_channel: aio.Channel | None = None
        self.call: Call | None = None

    def connect(self) -> Call:
        """Start the gRPC call that is the stream, and return it."""
        self.call = stub_of(self.channel).Connect(metadata=call_metadata(self.settings))
        return self.call

    def upload_stub(self) -> agent_pb2_grpc.SchedulerAsyncStub:
        """Return the scheduler's methods on the channel for uploads."""
        if self.upload_channel is None:
            self.upload_channel = open_channel(self.settings)
        return stub_of(self.upload_channel)

    async def close(self) -> None:
        """Close both channels.

        The caller must first end every task that reads the stream. Otherwise gRPC leaks sockets (grpc #42125).
        """
        if self.call is not None:
            self.call.cancel()
        if self.upload_channel is not None:
            await self.upload_channel.close()
        await self.channel.close()
