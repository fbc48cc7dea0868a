"""The stream to a real gRPC server: registration, health, the scheduler's messages, and every end of a stream."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import os
import signal
import socket
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from structlog.testing import capture_logs

from agent.domain.actions import Action, Cancel, Key
from agent.domain.errors import ActionFailed, Reason, Refused, Stage
from agent.domain.events import Accepted, ArtifactSummary, Event, Finished, LeftOut, LogChunk, StageChanged
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Readiness
from agent.execution.admission import admit
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.stream.stream import refused_error
from agent.settings import PolicySettings
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.stream import Rig, rig

ACTION = Action(Key("build", 1, 1), "alpine", ("true",))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


def sockets() -> int:
    """Return the number of open sockets of this process."""
    gc.collect()
    count = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{descriptor}").startswith("socket:")
        # The list of descriptors also has the descriptor with which `os.listdir` read the folder. By now `os.listdir`
        # has closed this descriptor.
        except FileNotFoundError:
            continue
    return count


# ---- registration


async def test_the_agent_registers_before_it_sends_anything_else(scheduler: FakeScheduler) -> None:
    scheduler.answers_registration = False
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        assert peer.register is not None
        uid, _, nonce = peer.register.agent_id.partition(".")
        assert (uid, len(nonce)) == ("pod-uid", 8)
        assert peer.register == wire.Register(
            agent_id=agent.identity.agent_id,
            protocol_version=1,
            agent_version="1.2.3",
            pool="blue",
            slots=3,
            labels={"zone": "a"},
            features=["services"],
        )
        assert not agent.connection.registered
        assert peer.health == []

        peer.send(registered=wire.Registered())
        await scheduler.until("the agent has reported its health", lambda: bool(peer.health))
        peer.send(action=translate.action_message(ACTION))
        assert await agent.handlers.got("action") == (ACTION,)
        assert agent.connection.registered
        assert agent.sample("stream_connected") == 1


async def test_an_action_before_registered_ends_the_stream(scheduler: FakeScheduler) -> None:
    scheduler.answers_registration = False
    async with rig(scheduler) as agent:
        (await scheduler.connected()).send(action=translate.action_message(ACTION))
        await scheduler.connected(2)
        assert agent.handlers.calls == []
        assert agent.sample("stream_reconnects_total", reason="error") == 1


async def test_an_unanswered_registration_is_repeated(scheduler: FakeScheduler) -> None:
    scheduler.answers_registration = False
    async with rig(scheduler, register_timeout=0.05) as agent:
        await scheduler.connected(2)
        assert agent.sample("stream_reconnects_total", reason="silent") >= 1


async def test_the_scheduler_sets_the_interval_and_the_grace(scheduler: FakeScheduler) -> None:
    scheduler.interval, scheduler.grace = 7.5, 90.0
    async with rig(scheduler) as agent:
        assert await agent.handlers.got("registered") == (7.5, 90.0)


# ---- health


async def test_health_is_sent_at_the_interval(scheduler: FakeScheduler) -> None:
    scheduler.interval = 0.02
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        await scheduler.until("4 health reports have arrived", lambda: len(peer.health) >= 4)
        assert peer.health[3] == wire.Health(status=wire.Health.READY, slots=3, cluster_reachable=True)
        assert agent.sample("health_last_sent_timestamp_seconds") > 0


async def test_health_is_sent_at_once_after_a_change_only(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        await scheduler.until("1 health report has arrived", lambda: len(peer.health) == 1)
        # The health has not changed since the last report, so this call must send no report.
        agent.health.notify()
        agent.now = dataclasses.replace(agent.now, running=2)
        agent.health.notify()
        await scheduler.until("2 health reports have arrived", lambda: len(peer.health) == 2)
        agent.health.notify()
        agent.now = dataclasses.replace(agent.now, status=Readiness.DRAINING)
        agent.health.notify()
        await scheduler.until("the agent reports DRAINING", lambda: peer.health[-1].status == wire.Health.DRAINING)
        assert [health.running for health in peer.health] == [0, 2, 2]


async def test_health_goes_before_events(scheduler: FakeScheduler) -> None:
    scheduler.answers_registration = False
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        session = agent.outbox.open(ACTION.key)
        await session.send(LogChunk(b"x"))
        peer.send(registered=wire.Registered())
        await scheduler.until("an event has arrived", lambda: bool(scheduler.arrivals))
        assert peer.order == ["register", "health", "event"]


# ---- messages of the scheduler


async def test_every_message_reaches_its_handler(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        peer.send(cancel=wire.Cancel(action_id="build", attempt=1, grace=translate.duration(2.5), message="enough"))
        assert await agent.handlers.got("cancel") == (("build", 1), Cancel(2.5, "enough"))
        peer.send(discard=wire.Discard(action_id="build", attempt=1, claim=1, claimed_by_other=True, message="b"))
        assert await agent.handlers.got("discard") == (ACTION.key, True, "b")
        peer.send(drain=wire.Drain(message="bye"))
        assert await agent.handlers.got("drain") == ("bye",)
        peer.send(action=translate.action_message(ACTION))
        peer.send(action=translate.action_message(ACTION))
        assert await agent.handlers.got("action", 2) == (ACTION,)


async def test_an_unusable_message_does_not_end_the_stream(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        # This message has only field 31, which belongs to a newer version of the protocol.
        peer.outgoing.put_nowait(wire.SchedulerMessage.FromString(b"\xfa\x01\x00"))
        peer.outgoing.put_nowait(wire.SchedulerMessage())
        peer.send(ack=wire.Ack(action_id="nobody", attempt=1, claim=1, seq=99))
        peer.send(resume=wire.Resume(action_id="nobody", attempt=0))
        peer.send(action=wire.Action(action_id="bad", attempt=0, claim=1))
        key, failure = await agent.handlers.got("action_failed", 2)
        assert key == Key("bad", 0, 1)
        assert "attempt" in failure.message

        def broken(action: Action) -> None:
            raise RuntimeError("an error of the handler")

        agent.handlers.on_action = broken
        peer.send(action=translate.action_message(ACTION))
        peer.send(drain=wire.Drain())
        await agent.handlers.got("drain")
        assert agent.sample("internal_errors_total", where="stream") == 1
        assert agent.sample("stream_messages_total", direction="received", type="unknown") == 2
        assert len(scheduler.peers) == 1


async def test_an_action_far_over_the_limits_of_the_policy_does_not_end_the_stream(scheduler: FakeScheduler) -> None:
    """Admission then refuses the action, so only this action fails."""
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        large = dataclasses.replace(ACTION, env={f"A{number}": "x" * 30_000 for number in range(200)})
        peer.send(action=translate.action_message(large))
        (found,) = await agent.handlers.got("action")
        assert found == large
        with pytest.raises(ActionFailed, match="env and secrets: 6000690 bytes are too many"):
            admit(found, PolicySettings())
        assert len(scheduler.peers) == 1


async def test_absurd_times_of_a_scheduler_are_bounded(scheduler: FakeScheduler) -> None:
    scheduler.interval, scheduler.grace = 1e11, 1e-9
    async with rig(scheduler) as agent:
        assert await agent.handlers.got("registered") == (3600.0, 0.01)
    refusal = wire.Refused(why=wire.Refused.TRY_LATER, retry_after=Duration(seconds=2**63 - 1))
    assert refused_error(refusal).retry_after == 3600.0


# ---- refused streams


@pytest.mark.parametrize("denial", [None, (grpc.StatusCode.UNIMPLEMENTED, "no such method")])
async def test_a_permanent_refusal_ends_the_agent(
    scheduler: FakeScheduler, denial: tuple[grpc.StatusCode, str] | None
) -> None:
    scheduler.denial = denial
    scheduler.refusal = wire.Refused(why=wire.Refused.PROTOCOL_VERSION, message="speak version 2")
    await scheduler.start()
    agent = Rig(scheduler)
    with pytest.raises(Refused) as refused:
        await agent.connection.run()
    assert refused.value.permanent
    assert ("version 2" if denial is None else "UNIMPLEMENTED") in str(refused.value)
    assert len(scheduler.peers) == 1
    await scheduler.stop()


async def test_after_a_temporary_refusal_the_agent_waits_for_retry_after(
    scheduler: FakeScheduler,
) -> None:
    scheduler.refusal = wire.Refused(why=wire.Refused.TRY_LATER, retry_after=translate.duration(0.001))
    async with rig(scheduler, reconnect_max=60.0) as agent:
        await agent.until_failed(3)
        scheduler.refusal = None
        await scheduler.connected()
        assert agent.sample("stream_reconnects_total", reason="refused") >= 3


# ---- outages of the scheduler


async def test_an_outage_is_logged_once_and_its_end_once(scheduler: FakeScheduler) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        scheduler.port = free.getsockname()[1]
    with capture_logs() as logs:
        async with rig(scheduler) as agent:
            await agent.until_failed(5)
            assert not agent.connection.registered
            await scheduler.start()
            await scheduler.connected()
            await agent.handlers.got("registered")
            scheduler.peer.end(grpc.StatusCode.UNAVAILABLE)
            await scheduler.connected(2)
            await agent.handlers.got("registered", 2)
    lost, back = f"cannot reach the scheduler at {scheduler.address}", "registered with the scheduler"
    assert [entry["event"] for entry in logs] == [lost, back, lost, back]
    assert "UNAVAILABLE" in logs[0]["reason"]
    assert agent.sample("stream_reconnects_total", reason="unavailable") >= 5


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (None, "closed"),
        (grpc.StatusCode.UNAVAILABLE, "unavailable"),
        (grpc.StatusCode.INTERNAL, "error"),
        (grpc.StatusCode.PERMISSION_DENIED, "unauthenticated"),
    ],
)
async def test_after_the_end_of_a_stream_the_agent_opens_another(
    scheduler: FakeScheduler, status: grpc.StatusCode | None, reason: str
) -> None:
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        await scheduler.until("the agent has reported its health", lambda: bool(peer.health))
        peer.end(status, "scripted")
        second = await scheduler.connected(2)
        await scheduler.until("the agent has reported its health on the new stream", lambda: bool(second.health))
        assert agent.sample("stream_reconnects_total", reason=reason) == 1
        assert (await agent.handlers.got("registered", 2)) == (60.0, 60.0)


async def test_an_expired_token_is_read_again_and_the_sessions_continue(
    scheduler: FakeScheduler, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    async with rig(scheduler, token_file=token) as agent:
        peer = await scheduler.connected()
        session = agent.outbox.open(ACTION.key)
        await session.send(LogChunk(b"one\n"))
        await session.wait_until_stored()
        scheduler.denial = (grpc.StatusCode.UNAUTHENTICATED, "expired")
        peer.end(grpc.StatusCode.UNAUTHENTICATED, "expired")
        await session.send(LogChunk(b"two\n"))
        await agent.until_failed(3)
        assert len(scheduler.peers) in (3, 4), "the agent reconnected without a pause"
        token.write_text("second")
        scheduler.denial = None
        await scheduler.connected(2)
        await session.wait_until_stored()
        assert [each.authorization for each in scheduler.peers][:: len(scheduler.peers) - 1] == [
            "Bearer first",
            "Bearer second",
        ]
        assert scheduler.log_of(ACTION.key) == b"one\ntwo\n"
        # If a write fails first, gRPC loses the status with which the scheduler ended the stream. Such a loss is
        # possible on the first stream.
        assert agent.sample("stream_reconnects_total", reason="unauthenticated") >= agent.failures - 1


async def test_a_message_over_the_size_limit_ends_its_stream_and_no_session(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        session = agent.outbox.open(ACTION.key)
        await session.send(LogChunk(b"one\n"))
        await session.wait_until_stored()
        peer.send(drain=wire.Drain(message="x" * (17 << 20)))
        await scheduler.connected(2)
        await session.send(LogChunk(b"two\n"))
        await session.wait_until_stored()
        assert scheduler.log_of(ACTION.key) == b"one\ntwo\n"
        assert agent.sample("stream_reconnects_total", reason="error") == 1
        assert "drain" not in [name for name, _ in agent.handlers.calls]


async def test_no_message_of_an_agent_exceeds_the_size_limit(scheduler: FakeScheduler) -> None:
    endless = "\N{SNOWMAN}" * (2 << 20)
    events: list[Event] = [
        Accepted(endless),
        StageChanged(Stage.SETUP, endless),
        LogChunk(bytes(256 << 10)),
        ArtifactSummary(1, 1, (LeftOut(b"p" * 4096, endless[: 16 << 10]),) * 1_000, 1_000),
        Finished(Outcome(Result.FAILED, Stage.SETUP, Reason.INTERNAL, message=endless)),
    ]
    async with rig(scheduler) as agent:
        await scheduler.connected()
        session = agent.outbox.open(ACTION.key)
        for event in events:
            await session.send(event)
        await session.wait_until_stored()
        assert [event.seq for event in scheduler.stored[ACTION.key.attempt_key]] == [1, 2, 3, 4, 5]
        assert agent.failures == 0, "gRPC refused a message and ended the stream"


async def test_the_agent_leaves_a_scheduler_that_answers_no_health(scheduler: FakeScheduler) -> None:
    scheduler.answers_health = False
    async with rig(scheduler, keepalive=0.05) as agent:
        await scheduler.connected(2)
        assert agent.sample("stream_reconnects_total", reason="silent") >= 1


async def test_the_agent_stays_with_a_silent_scheduler_that_has_answered_everything(scheduler: FakeScheduler) -> None:
    async with rig(scheduler, keepalive=0.05) as agent:
        peer = await scheduler.connected()
        watched = asyncio.Event()
        unanswered = agent.outbox.resume_unanswered
        calls: list[float] = []

        def counted(before: float) -> tuple[Key, ...]:
            calls.append(before)
            # When the agent checks for the 12th time whether an answer is overdue, the scheduler has sent nothing for
            # twice the allowed time.
            if len(calls) == 12:
                watched.set()
            return unanswered(before)

        agent.outbox.resume_unanswered = counted  # type: ignore[method-assign]
        await watched.wait()
        assert scheduler.peers == [peer]


async def test_a_frozen_peer_is_noticed_by_pings() -> None:
    frozen = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.fakes.scheduler",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert frozen.stdout is not None
        scheduler = FakeScheduler()
        scheduler.port = int(await frozen.stdout.readline())
        async with rig(scheduler, keepalive=0.25) as agent:
            await agent.until_handled("ack")
            frozen.send_signal(signal.SIGSTOP)
            await agent.until_failed(1)
            assert agent.sample("stream_reconnects_total", reason="unavailable") == 1
            assert agent.sample("stream_connected") == 0
    finally:
        frozen.send_signal(signal.SIGCONT)
        frozen.kill()
        await frozen.wait()
        frozen._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001 - asyncio has no public way


# ---- an agent that leaves


async def test_a_leaving_agent_sends_its_events_and_ends_the_stream_cleanly(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        await agent.handlers.got("registered")
        session = agent.outbox.open(ACTION.key)
        for _ in range(20):
            await session.send(LogChunk(b"last words\n"))
        with capture_logs() as logs:
            await agent.connection.close()
            assert agent.running is not None
            await agent.running
        assert logs == []
        await scheduler.until("the agent has ended its stream", lambda: peer.clean_end)
        assert scheduler.log_of(ACTION.key) == b"last words\n" * 20
        assert len(scheduler.peers) == 1


async def test_a_leaving_agent_does_not_wait_long_for_the_scheduler_to_end_the_stream(scheduler: FakeScheduler) -> None:
    scheduler.ends_with_agent = False
    async with rig(scheduler) as agent:
        await agent.handlers.got("registered")
        await agent.connection.close()
        assert agent.running is not None
        await agent.running


@pytest.mark.parametrize("answers", [True, False])
async def test_an_agent_without_a_stream_leaves_at_once(scheduler: FakeScheduler, answers: bool) -> None:
    scheduler.answers_registration = False
    if answers:
        scheduler.denial = (grpc.StatusCode.UNAVAILABLE, "no")
    async with rig(scheduler, reconnect_max=60.0) as agent:
        if answers:
            await agent.until_failed(1)
        else:
            await scheduler.connected()
        await agent.connection.close()
        assert agent.running is not None
        await agent.running
        await agent.connection.close()


async def test_a_hundred_reconnects_leak_no_socket_and_no_task(scheduler: FakeScheduler) -> None:
    # Maximum number of sockets that the reconnects may leave open. gRPC closes sockets in its own threads, a few
    # reconnects late. A leak would add one socket for each of the 100 reconnects.
    late = 45
    before = sockets()
    async with rig(scheduler) as agent:
        await agent.handlers.got("registered")
        early_sockets, early_tasks = sockets(), len(asyncio.all_tasks())
        for count in range(1, 101):
            (await scheduler.connected(count)).end(grpc.StatusCode.UNAVAILABLE)
            await agent.handlers.got("registered", count + 1)
        assert sockets() < early_sockets + late
        assert len(asyncio.all_tasks()) < early_tasks + late
    assert sockets() < before + late
