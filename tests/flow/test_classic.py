"""The classic protocol over real gRPC, between a fake SealCI 0.2 scheduler and sessions on a cluster in memory."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from agent.domain.errors import Reason
from agent.domain.observations import SetupFailed
from agent.scheduler.classic.call import Call
from agent.scheduler.classic.connection import ClassicConnection
from agent.scheduler.stream.health import HealthReporter
from agent.telemetry.metrics import Metrics
from tests.fakes.classic import Answer, asked, read, until_text
from tests.fakes.classic_agent import World, running_environment, worlds
from tests.fakes.cluster import Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


PENDING, RUNNING, COMPLETED = 1, 2, 3
DEADLINE = 30.0
# Channel options with which gRPC's flow-control windows do not grow, so that a client that does not read blocks the
# agent soon.
SMALL = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536))
FLOOD = (b"x" * 65535 + b"\n") * 100


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with worlds() as world:
        yield world


async def test_an_action_runs_to_its_end(world: World) -> None:
    answer = await world.scheduler.run("alpine", "a", "b")
    assert (answer.code, answer.exit_code, answer.dropped) == (grpc.StatusCode.OK, 0, 0)
    assert answer.text == "hello\nhello\n"
    assert answer.statuses == [PENDING, RUNNING, COMPLETED]


async def test_the_exit_code_of_a_failed_command_comes_with_a_sentence(world: World) -> None:
    world.backend.script = lambda _: Script(codes=(0, 7))
    answer = await world.scheduler.run("alpine", "a", "b", "c")
    assert answer.exit_code == 7
    assert answer.text == "hello\nhello\n[command 2 failed with exit code 7]\n"


async def test_a_failed_set_up_becomes_log_and_an_exit_code(world: World) -> None:
    failed = SetupFailed(Reason.IMAGE_PULL_FAILED, "the image cannot be pulled", "the image cannot be pulled\nevents\n")
    world.backend.script = lambda _: Script(setups=[[failed]])
    answer = await world.scheduler.run("nowhere/none", "a")
    assert (answer.code, answer.exit_code) == (grpc.StatusCode.OK, 125)
    assert answer.text == "the image cannot be pulled\nevents\n"


async def test_a_forbidden_action_becomes_log_and_an_exit_code(world: World) -> None:
    answer = await world.scheduler.run("alpine", "a", repo_url="file:///etc")
    assert answer.exit_code == 125
    assert "the scheme 'file' is not allowed" in answer.text
    assert answer.text.count("repository.url") == 1


async def test_invalid_utf8_is_replaced_and_a_character_split_over_chunks_is_not(world: World) -> None:
    world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    call, answer = world.scheduler.dial(asked("alpine", "a")), Answer()
    reading = asyncio.create_task(read(call, answer))
    environment = await running_environment(world)
    await environment.mark("s:1")
    for piece in (b"caf\xc3", b"\xa9 \xe2\x82", b"\xac \xff\xfe\0 end \xf0\x9f\n"):
        await environment.write(piece)
    await environment.mark("f:1:0")
    await environment.end(0, 1)
    await environment.unblock("commands")
    await reading
    assert answer.text == "café € \ufffd\ufffd\ufffd end \ufffd\n"
    assert answer.exit_code == 0


async def test_the_action_of_a_client_that_goes_away_is_cancelled(world: World) -> None:
    world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    call = world.scheduler.dial(asked("alpine", "a"))
    environment = await running_environment(world)
    call.cancel()
    await world.until_clean()
    assert environment.interrupts == [10.0]
    assert environment.steps[-1] == "removed"


async def test_the_actions_of_a_dead_scheduler_are_cancelled_and_the_agent_registers_again(world: World) -> None:
    world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    calls = [world.scheduler.dial(asked("alpine", "a", number=number)) for number in (1, 1)]
    await world.backend.until(
        "the logs of 2 environments are read",
        lambda: sum("log" in each.steps for each in world.backend.environments.values()) == 2,
    )
    await world.scheduler.stop()
    assert all(call.done() for call in calls)
    await world.until_clean()
    await world.scheduler.start()
    world.backend.script = lambda _: Script()
    entry = await world.scheduler.registered()
    assert entry.load == 0
    assert (await world.scheduler.run("alpine", "a", number=1)).exit_code == 0
    assert world.scheduler.registrations == 2


async def test_after_the_end_of_the_health_stream_the_agent_registers_again(world: World) -> None:
    world.scheduler.refuses = True
    assert world.scheduler.server is not None
    await world.scheduler.server.stop(None)
    await world.scheduler.start()
    await world.scheduler.until("the scheduler has refused the agent twice", lambda: world.scheduler.refusals > 1)
    assert not world.connection.registered
    world.scheduler.refuses = False
    await world.scheduler.until("the agent has registered a second time", lambda: world.scheduler.registrations == 2)


async def test_the_health_reports_the_load(world: World) -> None:
    world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    entry = await world.scheduler.registered()
    assert (entry.health[-1].cpu_avail, entry.health[-1].memory_avail) == (0, 0)
    assert entry.host == "http://127.0.0.1"
    call = world.scheduler.dial(asked("alpine", "a"))
    await world.scheduler.until("the agent reports a load of 50 %", lambda: entry.load == 50)
    call.cancel()
    await world.scheduler.until("the agent reports no load", lambda: entry.load == 0)


async def test_actions_over_the_slots_wait_and_actions_over_the_queue_are_refused() -> None:
    async with worlds(queue=1) as world:
        world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
        first = [world.scheduler.dial(asked("alpine", "a")) for _ in range(2)]
        await world.backend.until("there are 2 environments", lambda: len(world.backend.environments) == 2)
        entry = world.scheduler.best()
        waiting, answer = world.scheduler.dial(asked("alpine", "a"), entry), Answer()
        await until_text(waiting, answer, "]\n")
        assert answer.text == "[the action waits for one of 2 slots]\n"
        assert answer.statuses == [PENDING]
        refused = Answer()
        await read(world.scheduler.dial(asked("alpine", "a"), entry), refused)
        assert (refused.code, refused.exit_code, refused.statuses) == (grpc.StatusCode.OK, 125, [COMPLETED])
        assert refused.text == "[no slot is free and 1 action waits already; the action was not run]\n"
        first[0].cancel()
        await world.backend.until("there are 3 environments", lambda: len(world.backend.environments) == 3)
        world.backend.script = lambda _: Script()
        first[1].cancel()
        last = [each for each in world.backend.environments.values() if not each.interrupts][-1]
        await world.backend.until("the log of the last environment is read", lambda: "log" in last.steps)
        await last.run_commands()
        await last.unblock("commands")
        await read(waiting, answer)
        assert answer.exit_code == 0


async def test_a_waiting_call_leaves_the_queue_when_its_client_goes_or_its_time_is_over() -> None:
    async with worlds(agent={"slots": 1}, queue=2, queue_timeout=0.3) as world:
        world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
        running = world.scheduler.dial(asked("alpine", "a"))
        await running_environment(world)
        entry = world.scheduler.best()
        gone, late = Answer(), Answer()
        call = world.scheduler.dial(asked("alpine", "a"), entry)
        await until_text(call, gone, "waits")
        reading = asyncio.create_task(read(world.scheduler.dial(asked("alpine", "a"), entry), late))
        call.cancel()
        await reading
        assert late.exit_code == 125
        assert "behind 1 other]" in late.text or "slots]" in late.text
        assert "no slot became free within 0.3 s" in late.text
        assert not world.connection.service.waiting
        running.cancel()


async def test_actions_wait_while_the_cluster_does_not_answer(world: World) -> None:
    world.backend.reachable = False
    call, answer = world.scheduler.dial(asked("alpine", "a")), Answer()
    await until_text(call, answer, "]\n")
    assert answer.text == "[the action waits because the cluster does not answer]\n"
    world.backend.reachable = True
    world.connection.health.notify()
    await read(call, answer)
    assert answer.exit_code == 0


async def test_a_draining_agent_refuses_actions_and_lets_running_actions_end(world: World) -> None:
    world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    answers = [Answer(), Answer()]
    calls = [world.scheduler.dial(asked("alpine", "a")) for _ in answers]
    await world.backend.until(
        "the logs of 2 environments are read",
        lambda: sum("log" in each.steps for each in world.backend.environments.values()) == 2,
    )
    entry = world.scheduler.best()
    waiting, drained = world.scheduler.dial(asked("alpine", "a"), entry), Answer()
    await until_text(waiting, drained, "waits")
    world.sessions.drain("leaving")
    await read(waiting, drained)
    assert (drained.code, drained.exit_code) == (grpc.StatusCode.OK, 125)
    refused = Answer()
    await read(world.scheduler.dial(asked("alpine", "a"), entry), refused)
    assert (refused.code, refused.exit_code) == (grpc.StatusCode.OK, 125)
    assert refused.text == "[the agent is leaving; the action was not run]\n"
    await world.scheduler.until("the agent reports the maximum", lambda: entry.is_last)
    for environment in list(world.backend.environments.values()):
        await environment.run_commands()
        await environment.unblock("commands")
    await asyncio.gather(*(read(call, answer) for call, answer in zip(calls, answers, strict=True)))
    assert [answer.exit_code for answer in answers] == [0, 0]


async def test_an_action_cancelled_by_the_agent_has_an_exit_code(world: World) -> None:
    world.backend.script = lambda _: Script(holds=frozenset({"commands"}))
    call, answer = world.scheduler.dial(asked("alpine", "a")), Answer()
    reading = asyncio.create_task(read(call, answer))
    await running_environment(world)
    world.sessions.cancel_all("the agent was stopped")
    await reading
    assert answer.exit_code == 143
    assert answer.text.endswith("[the agent was stopped]\n")


async def test_the_last_health_of_a_leaving_agent_is_the_maximum() -> None:
    async with worlds() as world:
        entry = await world.scheduler.registered()
    assert (entry.is_last, entry.gone) == (True, True)


async def test_a_slow_client_slows_the_reading_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    full = asyncio.Event()

    class Room(asyncio.Event):
        def clear(self) -> None:
            super().clear()
            full.set()

    begin = Call.__init__

    def made(call: Call, *arguments: Any, **options: Any) -> None:
        begin(call, *arguments, **options)
        call.room = Room()

    monkeypatch.setattr(Call, "__init__", made)
    async with worlds() as world:
        world.scheduler.options = SMALL
        world.backend.script = lambda _: Script(output=FLOOD)
        call, answer = world.scheduler.dial(asked("alpine", "a")), Answer()
        await full.wait()
        (service_call,) = world.connection.service.calls.values()
        window = world.sessions.settings.scheduler.window
        print(f"\n  {service_call.size} bytes wait in a window of {window}, {len(FLOOD)} are written")
        assert 0 < service_call.size <= window
        await read(call, answer)
        assert answer.text == FLOOD.decode()


async def test_a_client_that_never_reads_counts_as_gone() -> None:
    async with worlds(write_timeout=0.5) as world:
        world.scheduler.options = SMALL
        world.backend.script = lambda _: Script(output=FLOOD)
        call = world.scheduler.dial(asked("alpine", "a"))
        await world.backend.until("there is an environment", lambda: bool(world.backend.environments))
        await world.until_clean()
        labels = {"result": "cancelled", "stage": "commands", "reason": "CANCELLED", "fault": ""}
        assert world.metrics.registry.get_sample_value("sealci_agent_actions_completed_total", labels) == 1
        call.cancel()


async def test_files_are_kept_in_a_folder_that_the_log_names(tmp_path: Path) -> None:
    async with worlds(files=str(tmp_path / "files")) as world:
        answer = await world.scheduler.run("alpine", "a")
        (folder,) = (tmp_path / "files").iterdir()
        assert answer.text == f"hello\n[1 file (8 bytes) kept by the agent on {socket.gethostname()} in {folder}]\n"
        assert folder.name.startswith("7-")
        assert (folder / "out.txt").read_bytes() == b"artifact"
        assert (folder / "out.txt").stat().st_mode & 0o777 == 0o644


async def test_files_that_cannot_be_kept_fail_the_action(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    async with worlds(files=str(folder)) as world:
        folder.rmdir()
        folder.write_text("in the way")
        answer = await world.scheduler.run("alpine", "a")
        assert answer.exit_code == 125
        assert f"the files cannot be kept in {folder}" in answer.text


async def test_a_port_in_use_is_an_error(world: World) -> None:
    own = world.connection.settings.classic.model_copy(update={"port": world.connection.port})
    settings = world.sessions.settings
    scheduler = settings.scheduler.model_copy(update={"classic": own})
    other = ClassicConnection(
        settings.model_copy(update={"scheduler": scheduler}),
        world,  # type: ignore[arg-type]  # what it calls is here
        Metrics(),
        HealthReporter(world.health, asyncio.Event()),
    )
    with pytest.raises(Exception, match="cannot listen on"):
        await other.run()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate and its key below `tmp_path`. Return the paths of both."""
    key, cert = tmp_path / "key", tmp_path / "cert"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=agent", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", *made, *named], check=True, capture_output=True)
    return key, cert


async def test_the_agent_and_the_scheduler_can_show_certificates(pair: tuple[Path, Path]) -> None:
    key, cert = pair
    async with worlds(cert_file=str(cert), key_file=str(key), ca_file=str(cert)) as world:
        entry = await world.scheduler.registered()
        assert entry.host == "https://127.0.0.1"
        untrusted = Answer()
        world.scheduler.credentials = grpc.ssl_channel_credentials(cert.read_bytes())
        await read(world.scheduler.dial(asked("alpine", "a")), untrusted)
        assert untrusted.code is grpc.StatusCode.INTERNAL
        assert world.backend.environments == {}
        world.scheduler.credentials = grpc.ssl_channel_credentials(*(each.read_bytes() for each in (cert, key, cert)))
        assert (await world.scheduler.run("alpine", "a")).exit_code == 0
