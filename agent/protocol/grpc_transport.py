"""gRPC channels and servers: options, TLS and the bearer token, the same at both ends of every connection.

The agent, the local scheduler and `sealci-agent submit` all build their channels and servers from these functions.
The functions keep no state. They read files at each call, so that certificates and tokens can be replaced at run time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import structlog
from grpc import aio

from agent.domain.errors import AgentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = structlog.get_logger(__name__)

# Seconds between two pings. A frozen peer is noticed after the interval plus the ping timeout. The agent's stream uses
# settings instead of this constant.
PING_INTERVAL = 20.0
PING_TIMEOUT = 10.0
TOKEN = re.compile(r"[\x21-\x7e]+")

Option = tuple[str, Any]


class TlsFiles(Protocol):
    """The PEM files of one end of a connection. None means that a file is not set."""

    @property
    def ca_file(self) -> Path | None:
        """The CA certificates. One of these CAs must have signed the other end's certificate."""

    @property
    def cert_file(self) -> Path | None:
        """The certificate chain of this end."""

    @property
    def key_file(self) -> Path | None:
        """The private key of this end."""


class FileUnreadable(OSError):
    """A TLS file or the token file cannot be read. `field` is the setting's name, such as `ca_file`."""

    def __init__(self, field: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror, error.filename)
        self.field = field


class TokenInvalid(AgentError):
    """The token file does not hold exactly one word of ASCII. The message never contains the file's text."""


# ---- options of channels and servers


def keepalive_options(interval: float = PING_INTERVAL, timeout: float = PING_TIMEOUT) -> list[Option]:
    """Return the options that make this end send pings. Both times are in seconds.

    `keepalive_timeout_ms` alone has no effect (measured with grpcio 1.85.1: 60 s for every value).
    `http2.ping_timeout_ms` sets the timeout.
    """
    return [
        ("grpc.keepalive_time_ms", max(int(interval * 1000), 1)),
        ("grpc.keepalive_timeout_ms", max(int(timeout * 1000), 1)),
        ("grpc.http2.ping_timeout_ms", max(int(timeout * 1000), 1)),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(min_ping_interval: float, *more: Option) -> list[Option]:
    """Return the options of a server. `min_ping_interval`: seconds between the pings that a client may send."""
    return [
        *keepalive_options(),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", int(min_ping_interval * 1000)),
        # Two servers on one port would share the port's connections at random. With this option the second server fails
        # to start.
        ("grpc.so_reuseport", 0),
        *more,
    ]


# ---- channels and servers with TLS


def open_channel(
    address: str, options: Sequence[Option], tls: TlsFiles | None, *, server_name: str = ""
) -> aio.Channel:
    """Return a channel that is not yet connected. Without `tls`, the channel is plaintext.

    `server_name` replaces the host of the address when the server's certificate is checked.

    Raises:
        FileUnreadable: a TLS file cannot be read.
    """
    if tls is None:
        return aio.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_file("ca_file", tls.ca_file),
        private_key=read_file("key_file", tls.key_file),
        certificate_chain=read_file("cert_file", tls.cert_file),
    )
    override = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return aio.secure_channel(address, credentials, options=[*options, *override])


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials | None:
    """Return the credentials of a server, or None for plaintext. With a CA, clients must show a certificate.

    The files are read again for each handshake. When they cannot be read, the handshake uses the last certificate.

    Raises:
        FileUnreadable: a file cannot be read now.
    """
    if tls.cert_file is None or tls.key_file is None:
        return None
    last = read_certificates(tls)

    def current() -> grpc.ServerCertificateConfiguration:
        nonlocal last
        try:
            last = read_certificates(tls)
        except FileUnreadable as error:
            log.error("a certificate cannot be read, the last one is used", why=str(error))
        return last

    return grpc.dynamic_ssl_server_credentials(last, current, require_client_authentication=tls.ca_file is not None)


def read_certificates(tls: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """Read a server's key, certificate and CA.

    Raises:
        FileUnreadable: a file cannot be read.
    """
    pair = (read_file("key_file", tls.key_file) or b"", read_file("cert_file", tls.cert_file) or b"")
    ca = read_file("ca_file", tls.ca_file)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=ca)


# ---- the bearer token


def token_metadata(file: Path | None) -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries the token of a file. If `file` is None, return an empty tuple.

    Raises:
        FileUnreadable: the file cannot be read.
        TokenInvalid: the file holds no token.
    """
    data = read_file("token_file", file)
    if data is None:
        return ()
    token = data.decode("ascii", "replace").strip()
    if not TOKEN.fullmatch(token):
        raise TokenInvalid(f"{file} holds no token (one word of ASCII)")
    return (("authorization", bearer(token)),)


def bearer(token: str) -> str:
    """Return the value of the `authorization` header for a token."""
    return f"Bearer {token}"


def read_file(field: str, file: Path | None) -> bytes | None:
    """Return the contents of the file that a setting names, or None when the setting is not set.

    Raises:
        FileUnreadable: the file cannot be read.
    """
    if file is None:
        return None
    try:
        return file.read_bytes()
    except OSError as error:
        raise FileUnreadable(field, error) from error
