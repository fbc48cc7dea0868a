"""Trust between agent and scheduler on the stream: TLS, mutual TLS, names and tokens."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from agent.settings import Tls
from tests.fakes.certificates import Certificates, Pair, made
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.stream import rig


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return made(tmp_path_factory.mktemp("certificates"))


def serving(pair: Pair, clients: Pair | None = None) -> FakeScheduler:
    scheduler = FakeScheduler()
    scheduler.credentials = pair.credentials(clients)
    return scheduler


async def test_a_scheduler_with_a_certificate_of_the_ca_is_trusted(certificates: Certificates) -> None:
    scheduler = serving(certificates.localhost)
    async with rig(scheduler, tls=Tls(ca_file=certificates.ca.cert)):
        await scheduler.connected()


async def test_the_setting_server_name_replaces_the_host_in_the_check(certificates: Certificates) -> None:
    scheduler = serving(certificates.elsewhere)
    async with rig(scheduler, tls=Tls(ca_file=certificates.ca.cert, server_name="scheduler.example")):
        await scheduler.connected()


async def test_the_agent_and_the_scheduler_show_certificates(certificates: Certificates) -> None:
    scheduler = serving(certificates.localhost, clients=certificates.ca)
    own = certificates.agent
    async with rig(scheduler, tls=Tls(ca_file=certificates.ca.cert, cert_file=own.cert, key_file=own.key)):
        await scheduler.connected()


@pytest.mark.parametrize("case", ["other authority", "other name", "no own certificate", "plaintext"])
async def test_the_agent_sends_nothing_to_an_untrusted_scheduler(certificates: Certificates, case: str) -> None:
    scheduler = serving(
        certificates.elsewhere if case == "other name" else certificates.localhost,
        clients=certificates.ca if case == "no own certificate" else None,
    )
    ca = certificates.other_ca if case == "other authority" else certificates.ca
    with capture_logs() as logs:
        async with rig(scheduler, tls=Tls(enabled=case != "plaintext", ca_file=ca.cert), token_file=None) as agent:
            await agent.until_failed(2)
            assert scheduler.peers == []
            assert not agent.connection.registered
    outages = [entry for entry in logs if "cannot reach" in entry["event"]]
    assert len(outages) == 1
    assert "UNAVAILABLE" in outages[0]["reason"]


async def test_a_replaced_ca_is_read_at_the_next_connect(certificates: Certificates, tmp_path: Path) -> None:
    scheduler = serving(certificates.localhost)
    ca = tmp_path / "ca.crt"
    ca.write_bytes(certificates.other_ca.cert.read_bytes())
    async with rig(scheduler, tls=Tls(ca_file=ca)) as agent:
        await agent.until_failed(1)
        ca.write_bytes(certificates.ca.cert.read_bytes())
        await scheduler.connected()


async def test_the_token_is_read_at_each_connect_and_never_logged(tmp_path: Path) -> None:
    scheduler = FakeScheduler()
    token = tmp_path / "token"
    with capture_logs() as logs:
        async with rig(scheduler, token_file=token, reconnect_max=0.01) as agent:
            # The first stream fails because the agent's token file does not exist yet.
            await agent.until_failed(1)
            token.write_text("old-secret\n")
            scheduler.denial = (grpc.StatusCode.UNAUTHENTICATED, "expired")
            await scheduler.until("a stream has begun", lambda: bool(scheduler.peers))
            scheduler.denial = None
            token.write_text("new-secret\n")
            await scheduler.until(
                "a stream with the new token has begun",
                lambda: scheduler.peers[-1].authorization == "Bearer new-secret",
            )
            await scheduler.connected()
            assert scheduler.peers[0].authorization == "Bearer old-secret"
            assert agent.sample("stream_reconnects_total", reason="unauthenticated") >= 1
    outages = [entry["reason"] for entry in logs if "cannot reach" in entry["event"]]
    assert len(outages) == 2
    assert "token_file" in outages[0]
    assert "UNAUTHENTICATED: expired" in outages[1]
    assert "secret" not in str(logs)


@pytest.mark.parametrize("text", ["", "two words", "über"])
async def test_a_file_without_a_token_is_logged_once(tmp_path: Path, text: str) -> None:
    scheduler = FakeScheduler()
    token = tmp_path / "token"
    token.write_text(text)
    with capture_logs() as logs:
        async with rig(scheduler, token_file=token) as agent:
            await agent.until_failed(2)
            assert scheduler.peers == []
    assert sum("holds no token" in str(entry.get("reason")) for entry in logs) == 1
