"""How the scheduler is reached: the channel, its trust, the token, and what the status of a broken call means.

A channel lives as long as one stream. Files are read at each connect, so that certificates and tokens can be rotated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
from grpc import aio

from agent.domain.errors import Refused, SchedulerError
from agent.protocol import grpc_transport
from agent.protocol.grpc_transport import FileUnreadable, TokenInvalid
from agent.protocol.wire import agent_pb2, agent_pb2_grpc

if TYPE_CHECKING:
    from agent.settings import SchedulerSettings

    Call = aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.SchedulerMessage]

UNTRUSTED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# CANCELLED is what a server's abrupt end looks like from here.
CLOSED = frozenset({grpc.StatusCode.OK, grpc.StatusCode.CANCELLED})
UNREACHABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
# Seconds. The bound of the wait for the answer to a ping, whatever the keepalive.
LONGEST_PING_TIMEOUT = 10.0


class Broken(SchedulerError):
    """A stream ended or never began; `kind` is the label of the metric."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def open_channel(settings: SchedulerSettings) -> aio.Channel:
    """Return a channel to the scheduler that is not yet connected.

    Raises:
        Broken: a file of TLS cannot be read.
    """
    options = [
        # The agent notices a frozen scheduler within twice the keepalive.
        *grpc_transport.keepalive_options(settings.keepalive, min(settings.keepalive, LONGEST_PING_TIMEOUT)),
        ("grpc.keepalive_permit_without_calls", 1),
        # A channel of a shared pool would inherit the back-off and the connection of the channel before it.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    tls = settings.tls if settings.tls.enabled else None
    try:
        return grpc_transport.open_channel(settings.address, options, tls, server_name=settings.tls.server_name)
    except FileUnreadable as error:
        raise Broken("error", unreadable("scheduler.tls", error)) from error


def metadata(settings: SchedulerSettings) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call. The bearer token is read now.

    Raises:
        Broken: the token file cannot be read or holds no token. The message never contains the file's text.
    """
    try:
        return grpc_transport.token_metadata(settings.token_file)
    except FileUnreadable as error:
        raise Broken("error", unreadable("scheduler", error)) from error
    except TokenInvalid as error:
        raise Broken("error", f"scheduler.token_file: {error}") from error


def unreadable(section: str, error: FileUnreadable) -> str:
    """Return a sentence that names the setting and the file."""
    return f"{section}.{error.field}: {error.filename} cannot be read: {error.strerror}"


def stub(channel: aio.Channel) -> agent_pb2_grpc.SchedulerAsyncStub:
    """Return the calls of a channel."""
    return agent_pb2_grpc.SchedulerStub(channel)


class Dialed:
    """The channels of one stream: its own, and one for bulk bytes, opened when first needed.

    Bulk goes over a connection of its own because streams of one connection share its window and its socket: a file
    would stand in front of the heartbeat there.
    """

    def __init__(self, settings: SchedulerSettings) -> None:
        self.settings = settings
        self.channel = open_channel(settings)
        self.bulk: aio.Channel | None = None
        self.call: Call | None = None

    def connect(self) -> Call:
        """Open the stream."""
        self.call = stub(self.channel).Connect(metadata=metadata(self.settings))
        return self.call

    def bulk_stub(self) -> agent_pb2_grpc.SchedulerAsyncStub:
        """Return the calls for bulk bytes."""
        if self.bulk is None:
            self.bulk = open_channel(self.settings)
        return stub(self.bulk)

    async def close(self) -> None:
        """Let go of everything. Nobody may be reading any longer: grpc leaks sockets then (grpc #42125)."""
        if self.call is not None:
            self.call.cancel()
        if self.bulk is not None:
            await self.bulk.close()
        await self.channel.close()


def explain(code: grpc.StatusCode, details: str) -> Broken | Refused:
    """Say what the status of a call that ended means for the stream."""
    sentence = f"{code.name}: {details}" if details else code.name
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Refused(f"the scheduler does not speak this protocol ({sentence})", permanent=True)
    if code in UNTRUSTED:
        return Broken("unauthenticated", sentence)
    if code in CLOSED:
        return Broken("closed", "the scheduler closed the stream" if code is grpc.StatusCode.OK else sentence)
    return Broken("unavailable" if code in UNREACHABLE else "error", sentence)
