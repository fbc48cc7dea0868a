"""The checks of a scheduler by `sealci-agent doctor`.

Each check fails for a cause of its own, and no check disturbs the scheduler.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from agent.console.reports.check_report import report
from agent.domain.check_result import Finding, Verdict, failed, ok, skipped, warning
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.stream import checks
from agent.settings import AgentSection, SchedulerSettings, Settings, Tls
from agent.telemetry.metrics import Metrics
from tests.fakes.certificates import Certificates, made, signed
from tests.fakes.scheduler import FakeScheduler

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

ADDRESS, TLS, TOKEN, REGISTRATION = checks.ADDRESS, checks.TLS, checks.TOKEN, checks.REGISTRATION
PLAIN = Tls(enabled=False)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return made(tmp_path_factory.mktemp("certificates"))


@asynccontextmanager
async def serving(scheduler: FakeScheduler) -> AsyncIterator[FakeScheduler]:
    await scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop()


async def examine(address: str, *, tls: Tls = PLAIN, **values: Any) -> dict[str, Finding]:
    """Check the scheduler at `address`. Return the finding of each check.

    `values` are further settings of the section `scheduler`.
    """
    settings = Settings(
        scheduler=SchedulerSettings(address=address, tls=tls, register_timeout=5, **values),
        agent=AgentSection(pool="checked", slots=7),
    )
    async with asyncio.timeout(20):
        found = {each.check: each async for each in checks.check_scheduler(settings, "1", Metrics())}
    assert list(found) == [ADDRESS, TLS, TOKEN, REGISTRATION]
    return found


async def test_the_advice_for_a_classic_scheduler_asks_for_no_tls_that_this_scheduler_lacks() -> None:
    async with serving(FakeScheduler()) as scheduler:
        classic = (await examine(scheduler.address, protocol="classic", classic={"listen": "127.0.0.1"}))[TLS]
        stream = (await examine(scheduler.address))[TLS]
    assert (classic.verdict, stream.verdict) == (Verdict.WARNING, Verdict.WARNING)
    assert "scheduler.tls.enabled: true" in stream.advice
    assert "scheduler.tls.enabled: true" not in classic.advice
    assert "proxy" in classic.advice


async def test_the_probe_registers_without_slots_and_disconnects(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("abc\n")
    async with serving(FakeScheduler()) as scheduler:
        found = await examine(scheduler.address, token_file=token)
        await scheduler.until("the first stream has ended", lambda: scheduler.peers[0].ended)
    assert [each.verdict for each in found.values()] == [Verdict.OK, Verdict.WARNING, Verdict.OK, Verdict.OK]
    (peer,) = scheduler.peers
    assert peer.register is not None
    assert (peer.register.slots, peer.register.pool, list(peer.register.sessions)) == (0, "checked", [])
    assert peer.authorization == "Bearer abc"
    assert (peer.health, peer.events, peer.clean_end) == ([], 0, True)


async def test_an_unreachable_scheduler_fails_one_check_and_skips_the_rest() -> None:
    scheduler = FakeScheduler()
    async with serving(scheduler):
        address = scheduler.address
    found = await examine(address)
    assert found[ADDRESS].verdict is Verdict.FAILED
    assert "cannot be reached" in found[ADDRESS].detail
    assert {found[each].verdict for each in (TLS, TOKEN, REGISTRATION)} == {Verdict.SKIPPED}


async def test_an_address_that_only_grpc_can_parse_skips_the_address_check() -> None:
    async with serving(FakeScheduler()) as scheduler:
        found = await examine(f"ipv4:127.0.0.1:{scheduler.port},127.0.0.1:{scheduler.port}/")
    assert found[ADDRESS].verdict is Verdict.SKIPPED


@pytest.mark.parametrize(
    ("case", "verdict", "text"),
    [
        ("good", Verdict.OK, "TLSv1.3, the certificate of localhost is valid until"),
        ("soon over", Verdict.WARNING, ", 1 days"),
        ("other authority", Verdict.FAILED, "localhost is not trusted: unable to get local issuer certificate"),
        ("other name", Verdict.FAILED, "Hostname mismatch"),
        ("set name", Verdict.WARNING, "scheduler.example is valid until"),
        ("not spoken", Verdict.FAILED, "no handshake"),
        ("no such file", Verdict.FAILED, "No such file"),
    ],
)
async def test_the_tls_check_names_the_cause(
    certificates: Certificates, tmp_path: Path, case: str, verdict: Verdict, text: str
) -> None:
    pair = certificates.elsewhere if case in ("other name", "set name") else certificates.localhost
    if case == "good":
        pair = signed(tmp_path, "long", certificates.ca, "localhost", days=300)
    scheduler = FakeScheduler()
    scheduler.credentials = None if case == "not spoken" else pair.credentials()
    ca = (certificates.other_ca if case == "other authority" else certificates.ca).cert
    tls = Tls(
        ca_file=tmp_path / "none" if case == "no such file" else ca,
        server_name="scheduler.example" if case == "set name" else "",
    )
    async with serving(scheduler):
        found = await examine(scheduler.address, tls=tls)
    assert found[TLS].verdict is verdict, found
    assert text in found[TLS].detail
    assert found[REGISTRATION].verdict is (Verdict.SKIPPED if verdict is Verdict.FAILED else Verdict.OK), found


@pytest.mark.parametrize("own", [True, False])
async def test_a_missing_client_certificate_fails_the_registration(certificates: Certificates, own: bool) -> None:
    scheduler = FakeScheduler()
    scheduler.credentials = certificates.localhost.credentials(certificates.ca)
    pair: dict[str, Any] = {"cert_file": certificates.agent.cert, "key_file": certificates.agent.key} if own else {}
    async with serving(scheduler):
        found = await examine(scheduler.address, tls=Tls(ca_file=certificates.ca.cert, **pair))
    assert found[REGISTRATION].verdict is (Verdict.OK if own else Verdict.FAILED)


async def test_a_missing_token_fails_its_own_check_and_a_wrong_token_the_registration(tmp_path: Path) -> None:
    token = tmp_path / "token"
    async with serving(FakeScheduler()) as scheduler:
        missing = await examine(scheduler.address, token_file=token)
        token.write_text("very-secret")
        scheduler.denial = (grpc.StatusCode.UNAUTHENTICATED, "expired")
        wrong = await examine(scheduler.address, token_file=token)
    assert missing[TOKEN].verdict is Verdict.FAILED
    assert str(token) in missing[TOKEN].detail
    assert missing[REGISTRATION].verdict is Verdict.SKIPPED
    assert wrong[TOKEN].verdict is Verdict.OK
    assert wrong[REGISTRATION].verdict is Verdict.FAILED
    assert "UNAUTHENTICATED: expired" in wrong[REGISTRATION].detail
    assert "renew the token" in wrong[REGISTRATION].advice
    assert "credentials.token" in wrong[REGISTRATION].advice
    assert "credentials.ca" in checks.TLS_ADVICE
    assert "very-secret" not in str(wrong)


async def test_a_refusal_has_the_scheduler_s_code_and_message() -> None:
    scheduler = FakeScheduler()
    scheduler.refusal = wire.Refused(why=wire.Refused.POOL_UNKNOWN, message="no pool of that name")
    async with serving(scheduler):
        found = await examine(scheduler.address)
    assert found[REGISTRATION].verdict is Verdict.FAILED
    assert "POOL_UNKNOWN no pool of that name" in found[REGISTRATION].detail


async def test_the_report_has_a_line_for_each_check_and_a_total() -> None:
    async def findings() -> AsyncGenerator[Finding]:
        for each in (
            ok("a", "fine"),
            warning("b", "so so", "look"),
            failed("c", "two\nlines", "do"),
            skipped("d", "x"),
        ):
            yield each

    lines: list[str] = []
    assert not await report(findings(), write=lines.append, as_json=False)
    assert [line.split()[0] for line in lines[:4]] == ["ok", "warning", "FAILED", "skipped"]
    assert lines[2].endswith("two lines -> do")
    assert lines[4] == "1 ok, 1 warning, 1 failed, 1 skipped"
    objects: list[str] = []
    await report(findings(), write=objects.append, as_json=True)
    read = [json.loads(each) for each in objects]
    assert [each.get("verdict") for each in read] == ["ok", "warning", "failed", "skipped", None]
    assert (read[-1]["event"], read[-1]["well"], read[-1]["failed"]) == ("finished", False, 1)


@pytest.mark.parametrize(("seconds", "verdict"), [(0, Verdict.OK), (-7, Verdict.WARNING), (3600, Verdict.FAILED)])
def test_the_clock_check_grades_the_difference(seconds: int, verdict: Verdict) -> None:
    from agent.cluster.checks.cluster import clock

    class Clocked:
        ahead = timedelta(seconds=seconds)

    found = clock(Clocked())  # type: ignore[arg-type]
    assert found.verdict is verdict
    assert ("ahead of" in found.detail) or seconds >= 0
