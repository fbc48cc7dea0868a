"""Tokens and certificates that are replaced under a running agent: real openssl, the local scheduler, mutual TLS."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from agent.cli.submit import Target, submit
from agent.domain.actions import Action, Cancel, Key
from agent.domain.session_state import Health, Readiness
from agent.execution.registry import SessionRegistry
from agent.local_scheduler.local_service import Access
from agent.local_scheduler.server import open_scheduler
from agent.pipeline import parser
from agent.scheduler.stream.connection import Connection, Identity
from agent.scheduler.stream.credential_reload import Timings
from agent.scheduler.stream.health import HealthReporter
from agent.scheduler.stream.outbox import Outbox
from agent.settings import Settings
from agent.telemetry.metrics import Metrics
from tests.fakes.certificates import Certificates, Pair, authority, made, signed
from tests.fakes.cluster import FakeBackend, Script
from tests.fakes.waiting import poll_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping, Sequence
    from pathlib import Path

    from agent.domain.errors import ActionFailed
    from agent.domain.session_state import Resume

DEADLINE = 30.0
QUICK = Timings(check_interval=0.05, connect_timeout=1.0)
TEXT = "name: p\nactions:\n  a: {configuration: {container: i}, commands: [x], artifacts: none}\n"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return made(tmp_path_factory.mktemp("certificates"))


class Files:
    """A folder like a mounted Secret.

    Each file is a symbolic link through the link `..data`, which the kubelet replaces when the Secret changes.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.version = 0

    def put(self, pair: Pair, ca: Path, token: str) -> None:
        """Replace the certificate, its key, the CA certificate and the token, all in one step."""
        self.version += 1
        data = self.folder / f"..{self.version}"
        data.mkdir()
        for source, name in ((pair.cert, "tls.crt"), (pair.key, "tls.key"), (ca, "ca.crt")):
            shutil.copy(source, data / name)
        (data / "token").write_text(token)
        (self.folder / "..new").symlink_to(data.name)
        (self.folder / "..new").replace(self.folder / "..data")
        for name in ("tls.crt", "tls.key", "ca.crt", "token"):
            if not self[name].is_symlink():
                self[name].symlink_to(f"..data/{name}")

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


class RunningAgent:
    """The parts of an agent that hold its stream and its sessions, over a cluster in memory."""

    def __init__(self, address: str, files: Files, tasks: asyncio.TaskGroup) -> None:
        tls = {"ca_file": files["ca.crt"], "cert_file": files["tls.crt"], "key_file": files["tls.key"]}
        scheduler = {"address": address, "tls": tls, "token_file": files["token"], "reconnect_max": 0.2}
        settings = Settings.model_validate({"scheduler": scheduler, "agent": {"slots": 3}})
        self.metrics = Metrics()
        self.outbox = Outbox(settings.scheduler.window, self.metrics)
        self.backend = FakeBackend()
        self.sessions = SessionRegistry(settings, self.backend, self.outbox, self.metrics, tasks)
        self.health = HealthReporter(
            lambda: Health(Readiness.READY, 3, self.sessions.used, cluster_reachable=True), self.outbox.wake
        )
        self.sessions.on_change = self.health.notify
        identity = Identity.of("pod", "1")
        self.connection = Connection(
            settings.scheduler, settings.agent, identity, self.outbox, self, self.metrics, self.health, QUICK
        )
        self.registrations = 0
        self.changed = asyncio.Condition()

    def registered(self, interval: float, grace: float) -> None:
        self.registrations += 1
        self.wake = asyncio.ensure_future(self.notify())

    async def notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until_registered(self, times: int) -> None:
        async with asyncio.timeout(DEADLINE), self.changed:
            await self.changed.wait_for(lambda: self.registrations >= times)

    def action(self, action: Action) -> None:
        self.sessions.action(action)

    def action_failed(self, key: Key, failure: ActionFailed) -> None:
        self.sessions.action_failed(key, failure)

    def cancel(self, attempt_key: tuple[str, int], cancel: Cancel) -> None:
        self.sessions.cancel(attempt_key, cancel)

    def resume(self, resume: Resume) -> None:
        self.sessions.resume(resume)

    def discard(self, key: Key, claimed_by_other: bool, message: str) -> None:
        self.sessions.discard(key, claimed_by_other, message)

    def drain(self, message: str) -> None:
        raise AssertionError("the scheduler sent an unexpected Drain")

    def ended(self, kind: str) -> float:
        """Return the number of streams that ended with the reason `kind`, from the metric."""
        return self.metrics.registry.get_sample_value("sealci_agent_stream_reconnects_total", {"reason": kind}) or 0


@asynccontextmanager
async def running(address: str, files: Files) -> AsyncIterator[RunningAgent]:
    async with asyncio.TaskGroup() as tasks:
        agent = RunningAgent(address, files, tasks)
        stream = tasks.create_task(agent.connection.run(), name="scheduler")
        try:
            yield agent
        finally:
            await agent.connection.close()
            stream.cancel()


def access(files: Files) -> Access:
    return Access(files["token"], files["tls.crt"], files["tls.key"], files["ca.crt"])


async def test_replaced_credentials_interrupt_no_action_and_lose_no_event(
    certificates: Certificates, tmp_path: Path
) -> None:
    """While an action runs, the test replaces the CA, both certificates and the token.

    The test replaces them first at the scheduler and then at the agent.
    """
    new_ca = authority(tmp_path, "new-ca")
    server, agents = Files(tmp_path, "server"), Files(tmp_path, "agent")
    server.put(certificates.localhost, certificates.ca.cert, "old-token")
    agents.put(certificates.agent, certificates.ca.cert, "old-token")
    async with (
        asyncio.timeout(60),
        open_scheduler("localhost:0", tmp_path / "state", access(server)) as scheduler,
        running(scheduler.address, agents) as agent,
    ):
        await agent.until_registered(1)
        agent.backend.script = lambda _: Script(holds=frozenset({"commands"}))
        await scheduler.dispatcher.submit("pipeline1", parser.parse(TEXT, "p.yaml"), {})
        await agent.backend.at("pipeline1/a", "commands")
        with capture_logs() as logs:
            server.put(signed(tmp_path, "new-server", new_ca, "localhost"), new_ca.cert, "new-token")
            agents.put(signed(tmp_path, "new-agent", new_ca, "agent"), new_ca.cert, "new-token")
            await agent.until_registered(2)
        assert agent.ended("rotated") == 1
        assert [each["event"] for each in logs if each["log_level"] == "warning"] == []
        (environment,) = agent.backend.environments.values()
        await environment.unblock("commands")
        events = [event async for event in scheduler.registry.watch("pipeline1")]
        await agent.sessions.idle()
    assert events
    assert (tmp_path / "state" / "pipeline1" / "a.log").read_bytes() == b"hello\n"
    assert environment.creations == 1
    assert "token" not in str(logs).replace("the token or the certificates were replaced", "")


async def test_credentials_that_do_not_work_leave_the_stream_open(certificates: Certificates, tmp_path: Path) -> None:
    server, agents = Files(tmp_path, "server"), Files(tmp_path, "agent")
    server.put(certificates.localhost, certificates.ca.cert, "token")
    agents.put(certificates.agent, certificates.ca.cert, "token")
    async with (
        asyncio.timeout(60),
        open_scheduler("localhost:0", tmp_path / "state", access(server)) as scheduler,
        running(scheduler.address, agents) as agent,
    ):
        await agent.until_registered(1)
        with capture_logs() as logs:
            agents.put(certificates.agent, certificates.other_ca.cert, "token")
            await poll_until("a warning about the other CA", lambda: "no connection in 1 s" in reasons(logs))
            agents.put(certificates.agent, certificates.ca.cert, "two words")
            await poll_until("a warning about the token", lambda: "holds no token" in reasons(logs))
        assert agent.connection.registered
        assert agent.registrations == 1
        # The agent gets a new certificate of the same CA, so the agent connects a second time.
        agents.put(certificates.localhost, certificates.ca.cert, "token")
        await agent.until_registered(2)


def reasons(logs: Sequence[MutableMapping[str, Any]]) -> str:
    """Return the field `reason` of all warnings in the captured log, joined by spaces."""
    return " ".join(str(each["reason"]) for each in logs if each["log_level"] == "warning")


async def test_a_pipeline_is_submitted_over_mutual_tls(certificates: Certificates, tmp_path: Path) -> None:
    server, agents, people = (Files(tmp_path, name) for name in ("server", "agent", "people"))
    server.put(certificates.localhost, certificates.ca.cert, "token")
    agents.put(certificates.agent, certificates.ca.cert, "token")
    people.put(signed(tmp_path, "person", certificates.ca, "person"), certificates.ca.cert, "token")
    trust: dict[str, Any] = {"ca_file": people["ca.crt"], "token_file": people["token"]}
    own: dict[str, Any] = {"cert_file": people["tls.crt"], "key_file": people["tls.key"]}
    file = tmp_path / "p.yaml"
    file.write_text(TEXT)
    asked = parser.load(file)
    async with (
        asyncio.timeout(60),
        open_scheduler("localhost:0", tmp_path / "state", access(server)) as scheduler,
        running(scheduler.address, agents) as agent,
    ):
        await agent.until_registered(1)
        assert await submit(Target(scheduler.address, **trust, **own), asked, secrets={}, output="json") == 0
        for wrong in (Target(scheduler.address, **trust), Target(scheduler.address, tls=False)):
            assert await submit(wrong, asked, secrets={}, output="json", give_up=0.1) == 3
        untrusted = Target(scheduler.address, token_file=people["token"])
        assert await submit(untrusted, asked, secrets={}, output="json", give_up=3600.0) == 3
        await agent.sessions.idle()
