"""How the scheduler is reached: the channel, its trust, the token, and what the status of a broken call means.

A channel lives as long as one stream. Files are read at each connect, so that certificates and tokens can be rotated.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import grpc
from grpc import aio

from agent.domain.errors import Refused, SchedulerError
from agent.protocol.wire import agent_pb2, agent_pb2_grpc

if TYPE_CHECKING:
    from pathlib import Path

    from agent.settings import SchedulerSettings, Tls

    Call = aio.StreamStreamCall[agent_pb2.AgentMessage, agent_pb2.SchedulerMessage]

UNTRUSTED = frozenset({grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED})
# CANCELLED is what a server's abrupt end looks like from here.
CLOSED = frozenset({grpc.StatusCode.OK, grpc.StatusCode.CANCELLED})
UNREACHABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
TOKEN = re.compile(r"[\x21-\x7e]+")


class Broken(SchedulerError):
    """A stream ended or never began; `kind` is the label of the metric."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def options(settings: SchedulerSettings) -> list[tuple[str, int | str]]:
    """Return the channel's arguments.

    A frozen peer is noticed within twice the keepalive. `keepalive_timeout_ms` alone does not govern that (measured
    with grpcio 1.85.1: 60 s whatever it said), `http2.ping_timeout_ms` does. A pool of its own keeps a new channel from
    inheriting the back-off and the connection of an old one.
    """
    interval = max(int(settings.keepalive * 1000), 1)
    patience = min(interval, 10_000)
    arguments: list[tuple[str, int | str]] = [
        ("grpc.keepalive_time_ms", interval),
        ("grpc.keepalive_timeout_ms", patience),
        ("grpc.http2.ping_timeout_ms", patience),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
    ]
    if settings.tls.enabled and settings.tls.server_name:
        arguments.append(("grpc.ssl_target_name_override", settings.tls.server_name))
    return arguments


def open_channel(settings: SchedulerSettings) -> aio.Channel:
    """Return a channel, not yet connected.

    Raises:
        Broken: a certificate or key cannot be read.
    """
    if not settings.tls.enabled:
        return aio.insecure_channel(settings.address, options=options(settings))
    return aio.secure_channel(settings.address, credentials(settings.tls), options=options(settings))


def credentials(tls: Tls) -> grpc.ChannelCredentials:
    """Read how the scheduler is trusted and how it can trust this agent."""
    return grpc.ssl_channel_credentials(
        root_certificates=contents("tls.ca_file", tls.ca_file),
        private_key=contents("tls.key_file", tls.key_file),
        certificate_chain=contents("tls.cert_file", tls.cert_file),
    )


def contents(setting: str, file: Path | None) -> bytes | None:
    """Read a file that a setting names."""
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise Broken("error", f"scheduler.{setting}: {file} cannot be read: {error.strerror}") from error


def metadata(settings: SchedulerSettings) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a call: the bearer token, read now.

    Raises:
        Broken: the token cannot be read or is none; its text is never said.
    """
    data = contents("token_file", settings.token_file)
    if data is None:
        return ()
    token = data.decode("ascii", "replace").strip()
    if not TOKEN.fullmatch(token):
        raise Broken("error", f"scheduler.token_file: {settings.token_file} holds no token (one word of ASCII)")
    return (("authorization", f"Bearer {token}"),)


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
