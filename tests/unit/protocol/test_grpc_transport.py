"""The gRPC set-up that agents, schedulers and clients share: options, TLS files and the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from agent.protocol import grpc_transport as transport
from agent.protocol.grpc_transport import FileUnreadable, TokenInvalid

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Files:
    """The TLS files and the token file of one end of a connection."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None


def test_a_server_notices_a_frozen_client_and_shares_its_port_with_no_other_server() -> None:
    assert dict(transport.server_options(5.0, ("grpc.max_receive_message_length", 7))) == {
        "grpc.keepalive_time_ms": 20_000,
        "grpc.keepalive_timeout_ms": 10_000,
        "grpc.http2.ping_timeout_ms": 10_000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.http2.min_ping_interval_without_data_ms": 5_000,
        "grpc.so_reuseport": 0,
        "grpc.max_receive_message_length": 7,
    }


def test_a_keepalive_of_zero_is_one_millisecond() -> None:
    assert dict(transport.keepalive_options(0.0, 0.0))["grpc.keepalive_time_ms"] == 1


def test_without_a_certificate_a_server_is_plaintext(tmp_path: Path) -> None:
    assert transport.server_credentials(Files(ca_file=tmp_path / "ca")) is None


@pytest.mark.parametrize("missing", ["cert_file", "key_file", "ca_file"])
def test_an_unreadable_file_is_named_with_its_setting(tmp_path: Path, missing: str) -> None:
    (tmp_path / "there").write_text("x")
    files = dict.fromkeys(("cert_file", "key_file", "ca_file"), tmp_path / "there") | {missing: tmp_path / "none"}
    with pytest.raises(FileUnreadable) as server:
        transport.server_credentials(Files(**files))
    with pytest.raises(FileUnreadable) as client:
        transport.open_channel("localhost:1", [], Files(**files))
    for error in (server.value, client.value):
        assert (error.field, error.filename, error.strerror) == (
            missing,
            str(tmp_path / "none"),
            "No such file or directory",
        )


def test_the_token_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    assert transport.token_metadata(tmp_path / "token") == (("authorization", "Bearer abc"),)
    assert transport.token_metadata(None) == ()


@pytest.mark.parametrize("text", ["", "two words", "über"])
def test_a_file_without_a_token_is_refused_and_its_text_is_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    with pytest.raises(TokenInvalid) as error:
        transport.token_metadata(tmp_path / "token")
    assert str(error.value) == f"{tmp_path / 'token'} holds no token (one word of ASCII)"
