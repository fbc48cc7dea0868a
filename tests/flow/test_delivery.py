"""Events, resume points and files over a real gRPC server: nothing is lost or repeated, and memory is bounded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from agent.domain.actions import Key
from agent.domain.artifacts import FileData, FileEnd, FilePart, FileStart
from agent.domain.errors import SchedulerError, Stage
from agent.domain.events import Accepted, CommandStarted, Event, Finished, LogChunk, Source
from agent.domain.log_cursor import Cursor
from agent.domain.outcome import Outcome, Result
from agent.domain.session_state import Resume
from agent.protocol import translate
from agent.protocol.wire import agent_pb2 as wire
from tests.fakes.scheduler import FakeScheduler
from tests.fakes.stream import rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = Key("build", 1, 1)
OTHER = Key("test", 1, 1)
FINISHED = Finished(Outcome(Result.SUCCEEDED, Stage.ARTIFACTS, None, 0, 1))
CHUNK = 40 << 10


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


def event(number: int) -> Event:
    return CommandStarted(number, Cursor(number))


async def test_events_arrive_in_order_and_are_dropped_after_their_acknowledgement(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)
        sent: list[Event] = [Accepted("ns/pod"), LogChunk(b"one\n", Cursor(4, 1)), event(1), FINISHED]
        for each in sent:
            await session.send(each)
        await session.wait_until_stored()
        stored = [translate.event(message) for message in scheduler.stored[KEY.attempt_key]]
        assert [(each.seq, each.event) for each in stored] == list(enumerate(sent, 1))
        assert agent.sample("events_unacknowledged") == 0
        assert agent.sample("log_bytes_total") == 4
        session.close()
        assert agent.outbox.session_states() == ()


async def test_every_event_is_stored_exactly_once_over_fifty_reconnects(scheduler: FakeScheduler) -> None:
    scheduler.ends_after_events = 7
    scheduler.acknowledges_every = 4
    async with rig(scheduler, reconnect_max=0.005) as agent:

        async def session(key: Key) -> bytes:
            session = agent.outbox.open(key)
            log = b""
            number = 0
            while len(scheduler.peers) <= 50:
                number += 1
                line = f"line {number}\n".encode()
                log += line
                await session.send(LogChunk(line))
                await session.send(event(number))
                if number % 20 == 0:
                    await session.wait_until_stored()
            await session.send(FINISHED)
            await session.wait_until_stored()
            return log

        keys = [Key(f"action {number}") for number in range(3)]
        logs = await asyncio.gather(*(session(key) for key in keys))
        assert [scheduler.log_of(key) for key in keys] == list(logs)
        for key in keys:
            stored = [translate.event(message).event for message in scheduler.stored[key.attempt_key]]
            assert stored[-1] == FINISHED
            starts = [each.index for each in stored if isinstance(each, CommandStarted)]
            assert starts == list(range(1, len(starts) + 1))
        assert len(scheduler.arrivals) > sum(len(events) for events in scheduler.stored.values())
        assert agent.sample("internal_errors_total", where="stream") == 0


async def test_a_full_window_stops_its_session_only(scheduler: FakeScheduler) -> None:
    scheduler.acknowledges = False
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)

        async def flood() -> None:
            for number in range(20):
                await session.send(LogChunk(bytes(CHUNK), source=list(Source)[number % 2]))

        flooding = asyncio.create_task(flood(), name="flood")
        await scheduler.until("3 events of KEY are stored", lambda: scheduler.last_seq(KEY) == 3)
        other = agent.outbox.open(OTHER)
        await other.send(event(1))
        await scheduler.until("1 event of OTHER is stored", lambda: scheduler.last_seq(OTHER) == 1)
        assert not flooding.done()
        assert session.used <= 1 << 17
        assert agent.sample("events_unacknowledged") == 4

        scheduler.acknowledges = True
        scheduler.peer.send(ack=wire.Ack(action_id=KEY.action_id, attempt=1, claim=1, seq=3))
        await flooding
        await session.wait_until_stored()
        assert len(scheduler.log_of(KEY)) == 20 * CHUNK


async def test_a_slow_scheduler_does_not_fill_the_memory_of_the_agent(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        await agent.until_handled("ack")
        scheduler.reads.clear()
        sessions = [agent.outbox.open(Key(f"action {number}")) for number in range(4)]

        async def flood(number: int) -> None:
            for _ in range(50):
                await sessions[number].send(LogChunk(bytes(CHUNK)))
            await sessions[number].wait_until_stored()

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(flood(number), name=f"flood {number}")
            while not all(session.send_lock.locked() for session in sessions):
                agent.outbox.wake.clear()
                await agent.outbox.wake.wait()
            assert sum(session.used for session in sessions) <= 4 << 17
            scheduler.reads.set()
        assert sum(len(event.log.data) for event in scheduler.arrivals) == 4 * 50 * CHUNK


# ---- resume points


async def test_a_restarted_scheduler_with_its_state_gets_the_remaining_events(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)
        await session.send(event(1))
        await session.wait_until_stored()
        await scheduler.stop()
        await session.send(event(2))
        await agent.until_failed(2)
        await scheduler.start()
        await session.wait_until_stored()
        assert [message.seq for message in scheduler.arrivals] == [1, 2]
        resume = (await agent.handlers.got("resume"))[0]
        assert resume == Resume(KEY, seq=1)


async def test_after_a_state_loss_the_session_sends_its_events_again(scheduler: FakeScheduler) -> None:
    losses: asyncio.Queue[tuple[Key, Resume]] = asyncio.Queue()
    async with rig(scheduler) as agent:

        def on_state_loss(key: Key, resume: Resume) -> bool:
            losses.put_nowait((key, resume))
            return True

        agent.outbox.on_state_loss = on_state_loss
        # Wait until the agent has registered without a session. The session is opened after this registration.
        await agent.handlers.got("registered")
        session = agent.outbox.open(KEY)
        for number in (1, 2):
            await session.send(event(number))
        await session.wait_until_stored()
        await scheduler.stop()
        await session.send(event(3))
        scheduler.forget()
        await scheduler.start()
        assert await losses.get() == (KEY, Resume(KEY, seq=0))

        # The agent has noticed the state loss. From now on, the session sends no event until the test calls `restart`,
        # even if the stream breaks a second time.
        scheduler.peer.end(grpc.StatusCode.UNAVAILABLE)
        assert await losses.get() == (KEY, Resume(KEY, seq=0))
        assert scheduler.stored == {}
        session.restart(0)
        for number in (1, 2, 3):
            await session.send(event(number))
        await session.wait_until_stored()
        assert [message.seq for message in scheduler.stored[KEY.attempt_key]] == [1, 2, 3]
        assert "resume" not in [name for name, _ in agent.handlers.calls], "the session was restarted, not resumed"


async def test_a_scheduler_that_sends_no_resume_point_gets_the_remaining_events(
    scheduler: FakeScheduler,
) -> None:
    scheduler.answers_sessions = False
    async with rig(scheduler, keepalive=0.2, register_timeout=0.2) as agent:
        session = agent.outbox.open(KEY)
        scheduler.acknowledges = False
        await session.send(event(1))
        await scheduler.until("1 event of KEY is stored", lambda: scheduler.last_seq(KEY) == 1)
        scheduler.peer.end(grpc.StatusCode.UNAVAILABLE)
        await scheduler.connected(2)
        scheduler.acknowledges = True
        await session.send(event(2))
        await session.wait_until_stored()
        assert [message.seq for message in scheduler.arrivals] == [1, 1, 2]


async def test_an_adopted_session_continues_at_the_resume_point(scheduler: FakeScheduler) -> None:
    adopted = Key("build", 1, 2)
    scheduler.stored[KEY.attempt_key] = [translate.event_message(KEY, number, event(number)) for number in range(1, 8)]
    async with rig(scheduler) as agent:
        peer = await scheduler.connected()
        await agent.handlers.got("registered")
        session = agent.outbox.open(adopted, adopted=True)
        assert (await agent.handlers.got("resume"))[0] == Resume(adopted, seq=7)
        await session.send(event(8))
        await session.wait_until_stored()
        assert [translate.session_state(state).key for state in peer.adopted] == [adopted]
        assert scheduler.last_seq(adopted) == 8

        # The adopted session has got its resume point. A reconnect then registers this session like any other.
        peer.end(grpc.StatusCode.UNAVAILABLE)
        second = await scheduler.connected(2)
        assert second.register is not None
        [state] = second.register.sessions
        assert (state.claim, state.last_seq, state.adopted) == (2, 8, False)


async def test_a_discarded_session_ends_all_waits(scheduler: FakeScheduler) -> None:
    scheduler.acknowledges = False
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)
        await session.send(event(1))
        await scheduler.until("1 event of KEY is stored", lambda: scheduler.last_seq(KEY) == 1)
        waiting = asyncio.create_task(session.wait_until_stored(), name="waiting")
        scheduler.peer.send(discard=wire.Discard(action_id="build", attempt=1, claim=1, message="superseded"))
        await waiting
        await session.send(event(2))
        assert agent.outbox.session_states() == ()
        assert agent.sample("events_unacknowledged") == 0


# ---- uploads of files


async def files(*sizes: int) -> AsyncIterator[FilePart]:
    for number, size in enumerate(sizes):
        yield FileStart(f"file {number}".encode(), 0o644, size)
        yield FileData(bytes(size))
        yield FileEnd(bytes(32))


async def test_files_are_packed_and_stored(scheduler: FakeScheduler) -> None:
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)
        await session.upload(files(*[100] * 1000, 1_000_000))
        [chunks] = scheduler.uploads
        header = chunks[0].header
        assert (header.action_id, header.attempt, header.claim) == ("build", 1, 1)
        assert header.agent_id == agent.identity.agent_id
        assert not any(chunk.HasField("header") for chunk in chunks[1:])
        assert max(chunk.ByteSize() for chunk in chunks) < 320 << 10
        assert len(chunks) == 5
        parts = [translate.part(part) for chunk in chunks for part in chunk.parts]
        assert parts[-1] == translate.UploadEnd(1001, 1_100_000)
        assert sum(len(part.data) for part in parts if isinstance(part, FileData)) == 1_100_000
        assert agent.sample("artifact_files_total") == 1001
        assert agent.sample("artifact_bytes_total") == 1_100_000


async def test_an_upload_that_breaks_is_an_error(scheduler: FakeScheduler) -> None:
    scheduler.breaks_upload_after = 2
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)
        with pytest.raises(SchedulerError, match="INTERNAL: scripted"):
            await session.upload(files(*[1_000_000] * 50))
        scheduler.breaks_upload_after = None
        await session.upload(files(10))
        assert agent.sample("artifact_files_total") == 1
        assert len(scheduler.peers) == 1


@pytest.mark.parametrize("started", [True, False])
async def test_an_upload_over_an_ended_connection_is_an_error_and_no_cancellation(
    scheduler: FakeScheduler, started: bool
) -> None:
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)
        reached = asyncio.Event()

        async def endless() -> AsyncIterator[FilePart]:
            yield FileStart(b"big", 0o644, 1 << 40)
            reached.set()
            while True:
                yield FileData(bytes(1 << 20))

        await agent.until_handled("ack")
        # The scheduler now stops reading. So the agent's upload waits in a write.
        scheduler.reads.clear()
        uploading = asyncio.create_task(session.upload(endless()), name="upload")
        await reached.wait()
        if started:
            await scheduler.until("an upload has begun", lambda: bool(scheduler.uploads))
        scheduler.peer.end(grpc.StatusCode.UNAVAILABLE)
        with pytest.raises(SchedulerError, match="the connection to the scheduler ended"):
            await uploading
        scheduler.reads.set()


async def test_a_receipt_with_other_numbers_is_an_error(scheduler: FakeScheduler) -> None:
    scheduler.receipt = wire.UploadReceipt(files=1, bytes=9)
    async with rig(scheduler) as agent:
        with pytest.raises(SchedulerError, match="stored 1 files of 9 bytes; 1 files of 10 bytes"):
            await agent.outbox.open(KEY).upload(files(10))


async def test_an_upload_waits_for_a_connection_until_its_caller_stops_it(scheduler: FakeScheduler) -> None:
    scheduler.denial = (grpc.StatusCode.UNAVAILABLE, "not yet")
    async with rig(scheduler) as agent:
        session = agent.outbox.open(KEY)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await session.upload(files(10))
        uploading = asyncio.create_task(session.upload(files(10)), name="upload")
        await agent.until_failed(2)
        scheduler.denial = None
        await uploading
        assert len(scheduler.uploads) == 1


async def test_an_upload_ends_with_the_error_of_its_reader(scheduler: FakeScheduler) -> None:
    async def breaking() -> AsyncIterator[FilePart]:
        yield FileStart(b"a", 0o644, 1)
        raise LookupError("the reader broke")

    async with rig(scheduler) as agent:
        with pytest.raises(LookupError):
            await agent.outbox.open(KEY).upload(breaking())
        assert agent.connection.registered
