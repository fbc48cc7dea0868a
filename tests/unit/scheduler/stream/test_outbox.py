"""Test the outbox of events, without a gRPC stream.

The tests cover event numbers, the windows of unacknowledged events, the order in which sessions send, resume points and
adoption.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.actions import Key
from agent.domain.errors import SchedulerError
from agent.domain.events import CommandStarted, Event, LogChunk, Source
from agent.domain.log_cursor import Cursor
from agent.domain.session_state import Resume, SessionState
from agent.scheduler.stream.outbox import Outbox, Outgoing
from agent.scheduler.stream.session_outbox import MAX_JOINED
from agent.telemetry.metrics import Metrics
from tests.fakes.waiting import poll_until

if TYPE_CHECKING:
    from agent.scheduler.stream.session_outbox import SessionOutbox

KEY = Key("a", 1, 2)
WINDOW = 1 << 17
BIG = 64 << 10


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(WINDOW, Metrics())


def event(number: int) -> Event:
    return CommandStarted(number, Cursor())


def drain(outbox: Outbox) -> list[Outgoing]:
    """Take all events from the outbox that can be sent now."""
    items = []
    while (item := outbox.take()) is not None:
        assert isinstance(item, Outgoing)
        items.append(item)
    return items


async def filled(outbox: Outbox, count: int, key: Key = KEY) -> SessionOutbox:
    session = outbox.open(key)
    for number in range(1, count + 1):
        await session.send(event(number))
    return session


def kept(outbox: Outbox) -> float:
    return outbox.metrics.registry.get_sample_value("sealci_agent_events_unacknowledged") or 0.0


async def blocked(task: asyncio.Task[Any]) -> bool:
    """Wait until a task has ended or awaits a future without a result. Return whether the task still waits."""
    await poll_until("the task waits or has ended", lambda: task.done() or is_waiting(task))
    return not task.done()


def is_waiting(task: asyncio.Task[Any]) -> bool:
    """Return whether the future that a task awaits has no result yet."""
    awaited = getattr(task, "_fut_waiter", None)
    return awaited is not None and not awaited.done()


# ---- numbers of events


async def test_numbers_are_contiguous_from_one(outbox: Outbox) -> None:
    await filled(outbox, 3)
    assert drain(outbox) == [Outgoing(KEY, number, event(number)) for number in (1, 2, 3)]
    assert outbox.take() is None


async def test_acknowledgements_are_cumulative(outbox: Outbox) -> None:
    session = await filled(outbox, 3)
    storing = asyncio.create_task(session.wait_until_stored())
    drain(outbox)
    outbox.ack(KEY, 2)
    assert kept(outbox) == 1
    assert await blocked(storing)
    outbox.ack(KEY, 3)
    await storing
    assert kept(outbox) == 0
    assert session.used == 0


@pytest.mark.parametrize(
    ("key", "seq", "kind"),
    [
        (KEY, 3, "acknowledged ahead"),
        (KEY, 99, "acknowledged ahead"),
        (KEY, 1, "acknowledged again"),
        (KEY, 0, "acknowledged again"),
        (Key("a", 1, 1), 2, "unknown session"),
        (Key("a", 1, 3), 2, "unknown session"),
        (Key("b", 1, 2), 2, "unknown session"),
    ],
)
async def test_acknowledgements_of_unknown_events_are_ignored(outbox: Outbox, key: Key, seq: int, kind: str) -> None:
    await filled(outbox, 3)
    outbox.take()
    # This call takes the second of three events for sending. The third event is never sent.
    outbox.take()
    outbox.ack(KEY, 1)
    outbox.ack(key, seq)
    assert outbox.ignored == {kind: 1}
    assert kept(outbox) == 2


# ---- joined log chunks


async def test_unsent_chunks_of_log_are_joined(outbox: Outbox) -> None:
    session = outbox.open(KEY)
    for number in range(1, 101):
        await session.send(LogChunk(b"line\n", Cursor(5 * number)))
    assert drain(outbox) == [Outgoing(KEY, 1, LogChunk(b"line\n" * 100, Cursor(500)))]


async def test_a_sent_chunk_of_log_is_never_joined(outbox: Outbox) -> None:
    session = outbox.open(KEY)
    await session.send(LogChunk(b"1"))
    first = outbox.take()
    outbox.reset()
    await session.send(LogChunk(b"2"))
    assert drain(outbox) == [first, Outgoing(KEY, 2, LogChunk(b"2"))]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LogChunk(b"1"), LogChunk(b"2", None, Source.AGENT)),
        # A join of these two chunks would lose the exact cursor of the first chunk.
        (LogChunk(b"1", Cursor(1)), LogChunk(b"2")),
        (LogChunk(bytes(MAX_JOINED)), LogChunk(b"2")),
    ],
)
async def test_chunks_are_not_joined_if_source_or_cursor_or_size_forbid_it(first: LogChunk, second: LogChunk) -> None:
    outbox = Outbox(4 * MAX_JOINED, Metrics())
    session = outbox.open(KEY)
    await session.send(first)
    await session.send(second)
    assert [item.event for item in drain(outbox)] == [first, second]


async def test_chunks_of_log_are_not_joined_across_another_event(outbox: Outbox) -> None:
    session = outbox.open(KEY)
    sent = [LogChunk(b"1"), event(1), LogChunk(b"2")]
    for each in sent:
        await session.send(each)
    assert [item.event for item in drain(outbox)] == sent


async def test_joined_log_has_a_maximum_size() -> None:
    outbox = Outbox(4 * MAX_JOINED, Metrics())
    session = outbox.open(KEY)
    for _ in range(3):
        await session.send(LogChunk(bytes(MAX_JOINED // 2)))
    sizes = [len(item.event.data) for item in drain(outbox) if isinstance(item.event, LogChunk)]
    assert sizes == [MAX_JOINED, MAX_JOINED // 2]


# ---- the window of one session: the bytes of its unacknowledged events


async def test_a_full_window_makes_the_sender_wait(outbox: Outbox) -> None:
    session = outbox.open(KEY)
    await session.send(LogChunk(bytes(BIG)))
    await session.send(event(1))
    second = asyncio.create_task(session.send(LogChunk(bytes(BIG))))
    third = asyncio.create_task(session.send(event(2)))
    assert await blocked(second)
    assert await blocked(third), "a later event overtook a waiting event"
    drain(outbox)
    outbox.ack(KEY, 1)
    await second
    await third
    assert [type(item.event) for item in drain(outbox)] == [LogChunk, CommandStarted]
    assert session.used <= WINDOW


async def test_an_event_larger_than_the_window_is_sent_alone(outbox: Outbox) -> None:
    session = outbox.open(KEY)
    await session.send(LogChunk(bytes(2 * WINDOW)))
    assert len(drain(outbox)) == 1


async def test_a_cancelled_sender_adds_no_event(outbox: Outbox) -> None:
    session = outbox.open(KEY)
    await session.send(LogChunk(bytes(WINDOW)))
    waiting = asyncio.create_task(session.send(event(1)))
    assert await blocked(waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    drain(outbox)
    outbox.ack(KEY, 1)
    await session.send(event(2))
    assert drain(outbox) == [Outgoing(KEY, 2, event(2))]


@pytest.mark.parametrize("how", ["close", "discard"])
async def test_a_closed_session_outbox_ends_all_waits_and_keeps_no_event(outbox: Outbox, how: str) -> None:
    session = outbox.open(KEY)
    await session.send(LogChunk(bytes(WINDOW)))
    waiting = asyncio.create_task(session.send(event(1)))
    storing = asyncio.create_task(session.wait_until_stored())
    assert await blocked(waiting)
    if how == "close":
        session.close()
    else:
        assert outbox.discard(KEY)
    await waiting
    await storing
    await session.send(event(2))
    assert outbox.take() is None
    assert (kept(outbox), outbox.session_states()) == (0, ())


# ---- the order in which sessions send


async def test_a_session_with_much_output_delays_others_by_one_event(outbox: Outbox) -> None:
    await filled(outbox, 100, Key("flood"))
    await filled(outbox, 2, Key("b"))
    await filled(outbox, 2, Key("c"))
    order = [item.key.action_id for item in drain(outbox)]
    assert order[:7] == ["flood", "b", "c", "flood", "b", "c", "flood"]
    assert len(order) == 104


async def test_next_waits_for_an_event(outbox: Outbox) -> None:
    waiting = asyncio.create_task(outbox.next())
    assert await blocked(waiting)
    await filled(outbox, 1)
    assert await waiting == Outgoing(KEY, 1, event(1))


# ---- reconnects


async def test_after_a_reset_unacknowledged_events_are_sent_again_in_order(outbox: Outbox) -> None:
    await filled(outbox, 4)
    outbox.take()
    outbox.take()
    outbox.ack(KEY, 1)
    outbox.reset()
    assert outbox.session_states() == (SessionState(KEY, 4),)
    assert outbox.take() is None, "sent before the resume point"
    assert outbox.resume(Resume(KEY, 1))
    assert [item.seq for item in drain(outbox)] == [2, 3, 4]


async def test_a_resume_point_acknowledges_the_stored_events(outbox: Outbox) -> None:
    session = await filled(outbox, 4)
    drain(outbox)
    outbox.reset()
    outbox.session_states()
    outbox.resume(Resume(KEY, 3))
    assert [item.seq for item in drain(outbox)] == [4]
    outbox.ack(KEY, 4)
    await session.wait_until_stored()


async def test_a_resume_point_after_the_last_sent_event_is_ignored_and_counted(outbox: Outbox) -> None:
    await filled(outbox, 2)
    outbox.take()
    outbox.reset()
    outbox.session_states()
    assert outbox.resume(Resume(KEY, 2)), "the second was never sent"
    assert outbox.ignored == {"resumed ahead": 1}
    assert [item.seq for item in drain(outbox)] == [1, 2]


async def test_a_new_session_does_not_wait_for_a_resume_point(outbox: Outbox) -> None:
    await filled(outbox, 1)
    outbox.session_states()
    await filled(outbox, 1, Key("new"))
    assert [item.key.action_id for item in drain(outbox)] == ["new"]


async def test_sessions_without_a_resume_point_continue_after_a_timeout(outbox: Outbox) -> None:
    await filled(outbox, 1)
    outbox.session_states()
    assert outbox.resume_unanswered(time.monotonic() - 1) == ()
    assert outbox.take() is None
    assert outbox.resume_unanswered(time.monotonic() + 1) == (KEY,)
    assert [item.seq for item in drain(outbox)] == [1]
    assert outbox.resume_unanswered(time.monotonic() + 1) == ()


# ---- state loss


async def test_a_state_loss_is_handed_to_the_session(outbox: Outbox) -> None:
    calls: list[tuple[Key, Resume]] = []

    def on_state_loss(key: Key, resume: Resume) -> bool:
        calls.append((key, resume))
        return True

    outbox.on_state_loss = on_state_loss
    session = await filled(outbox, 3)
    drain(outbox)
    outbox.ack(KEY, 2)
    outbox.reset()
    outbox.session_states()
    storing = asyncio.create_task(session.wait_until_stored())
    assert not outbox.resume(Resume(KEY, 1))
    assert calls == [(KEY, Resume(KEY, 1))]
    await session.send(event(4))
    assert outbox.resume_unanswered(time.monotonic() + 1) == ()
    assert outbox.take() is None
    session.restart(1)
    assert await blocked(storing), "nothing was acknowledged"
    await session.send(event(20))
    assert drain(outbox) == [Outgoing(KEY, 2, event(20))]
    outbox.ack(KEY, 2)
    await storing
    assert kept(outbox) == 0


async def test_a_state_loss_without_a_session_sends_the_kept_events_after_a_notice(outbox: Outbox) -> None:
    session = await filled(outbox, 3)
    drain(outbox)
    outbox.ack(KEY, 2)
    outbox.reset()
    outbox.session_states()
    assert outbox.resume(Resume(KEY, 0))
    notice, rest = drain(outbox)
    assert notice.seq == 1
    assert isinstance(notice.event, LogChunk)
    assert notice.event.source is Source.AGENT
    assert b"2 events" in notice.event.data
    assert rest == Outgoing(KEY, 2, event(3))
    outbox.ack(KEY, 2)
    await session.wait_until_stored()


# ---- adoption and claims


async def test_an_adopted_session_asks_for_its_resume_point_and_continues_there(outbox: Outbox) -> None:
    session = outbox.open(KEY, adopted=True)
    await session.send(event(1))
    assert outbox.take() == SessionState(KEY, 0, adopted=True)
    assert outbox.take() is None
    assert outbox.resume_unanswered(time.monotonic() + 1) == (KEY,)
    assert outbox.take() == SessionState(KEY, 0, adopted=True)
    assert outbox.resume(Resume(KEY, 41))
    assert drain(outbox) == [Outgoing(KEY, 42, event(1))]
    assert outbox.session_states() == (SessionState(KEY, 42),)


async def test_an_adopted_session_is_part_of_the_registration(outbox: Outbox) -> None:
    outbox.open(KEY, adopted=True)
    outbox.reset()
    assert outbox.session_states() == (SessionState(KEY, 0, adopted=True),)
    assert outbox.take() is None


async def test_a_higher_claim_replaces_a_lower_one(outbox: Outbox) -> None:
    older = await filled(outbox, 2)
    newer = outbox.open(Key("a", 1, 3))
    await newer.send(event(7))
    await older.wait_until_stored()
    older.close()
    assert drain(outbox) == [Outgoing(Key("a", 1, 3), 1, event(7))]
    with pytest.raises(ValueError, match="superseded"):
        outbox.open(KEY)
    assert not outbox.discard(KEY)
    assert outbox.discard(Key("a", 1, 3))


async def test_files_need_a_connection(outbox: Outbox) -> None:
    session = outbox.open(KEY)
    with pytest.raises(SchedulerError):
        await session.upload(None)  # type: ignore[arg-type]


# ---- random sequences of steps with a simulated scheduler


@settings(deadline=None)
@given(steps=st.lists(st.sampled_from(["log", "event", "take", "ack", "break"]), max_size=120))
def test_no_event_is_lost_repeated_or_reordered_in_any_sequence_of_steps(steps: list[str]) -> None:
    asyncio.run(walk(steps))


async def walk(steps: list[str]) -> None:
    """Run an outbox against a simulated scheduler.

    `steps` names what happens in turn. "log" is a new log chunk and "event" a new event of another kind. "take" sends
    one event. "ack" is an acknowledgement, and "break" is a broken stream.
    """
    outbox = Outbox(1 << 30, Metrics())
    session = outbox.open(KEY)
    stored: list[Event] = []
    sent_log, count = b"", 0

    def store(item: Outgoing | SessionState | None) -> None:
        if isinstance(item, Outgoing):
            assert item.seq <= len(stored) + 1
            if item.seq <= len(stored):
                assert stored[item.seq - 1] == item.event
            else:
                stored.append(item.event)

    for step in [*steps, "break"]:
        match step:
            case "log":
                sent_log += (piece := f"{len(sent_log)} ".encode())
                await session.send(LogChunk(piece, Cursor(len(sent_log))))
            case "event":
                count += 1
                await session.send(event(count))
            case "take":
                store(outbox.take())
            case "ack":
                outbox.ack(KEY, len(stored) // 2)
            case "break":
                outbox.reset()
                outbox.session_states()
                outbox.resume(Resume(KEY, max(len(stored) - 2, session.acknowledged)))
    while (item := outbox.take()) is not None:
        store(item)
    outbox.ack(KEY, len(stored))
    await session.wait_until_stored()
    assert b"".join(each.data for each in stored if isinstance(each, LogChunk)) == sent_log
    assert [each.index for each in stored if isinstance(each, CommandStarted)] == list(range(1, count + 1))
    assert kept(outbox) == 0
    assert session.used == 0


# ---- the common window of all sessions: the bytes of their unacknowledged events


def keys(number: int) -> list[Key]:
    return [Key(f"flood-{index}", 1, 1) for index in range(number)]


async def test_the_bytes_of_many_sessions_together_are_bounded() -> None:
    outbox = Outbox(1 << 20, Metrics(), 1 << 20)
    most, sent = 0, [0] * 50

    async def flood(index: int, key: Key) -> None:
        session = outbox.open(key)
        for _ in range(40):
            await session.send(LogChunk(bytes(BIG), Cursor()))
            sent[index] += 1
        await session.wait_until_stored()

    tasks = [asyncio.create_task(flood(index, key)) for index, key in enumerate(keys(50))]
    while not all(task.done() for task in tasks):
        most = max(most, outbox.used)
        await asyncio.sleep(0)
        if (item := outbox.take()) is not None:
            assert isinstance(item, Outgoing)
            outbox.ack(item.key, item.seq)
    await asyncio.gather(*tasks)
    assert sent == [40] * 50
    # The outbox always accepts one event of each session, even if the common window is full. So every session advances.
    assert 1 << 20 < most <= (1 << 20) + 50 * (BIG + 256)
    assert (outbox.used, outbox.waiting_for_room) == (0, {})


async def test_sessions_in_line_get_freed_room_in_turn() -> None:
    outbox = Outbox(WINDOW, Metrics(), 3 * (BIG + 256))
    first, second, third = (outbox.open(key) for key in keys(3))
    for session in (first, second, third):
        await session.send(LogChunk(bytes(BIG), Cursor()))
    drain(outbox)
    waits = [asyncio.create_task(session.send(event(1))) for session in (second, third)]
    assert all([await blocked(task) for task in waits])
    outbox.ack(first.key, 1)
    for task in waits:
        await task
    assert outbox.waiting_for_room == {}


async def test_a_session_that_waits_for_its_own_window_delays_no_other() -> None:
    outbox = Outbox(WINDOW, Metrics(), 3 * (BIG + 256))
    full, other = (outbox.open(key) for key in keys(2))
    for session in (full, outbox.open(KEY)):
        await session.send(LogChunk(bytes(BIG), Cursor()))
    await other.send(event(1))
    drain(outbox)
    own = asyncio.create_task(full.send(LogChunk(bytes(BIG), Cursor())))
    for number in range(2, 258):
        await other.send(event(number))
    crowded = asyncio.create_task(other.send(event(258)))
    assert await blocked(own)
    assert await blocked(crowded)
    outbox.ack(KEY, 1)
    await crowded
    assert await blocked(own)
    full.close()
    await own
    assert outbox.waiting_for_room == {}


async def test_a_closed_session_leaves_the_line() -> None:
    outbox = Outbox(WINDOW, Metrics(), BIG + 512)
    first, second, third = (outbox.open(key) for key in keys(3))
    for session in (first, second, third):
        await session.send(LogChunk(bytes(BIG), Cursor()))
    waits = [asyncio.create_task(session.send(event(1))) for session in (second, third)]
    assert all([await blocked(task) for task in waits])
    second.close()
    await waits[0]
    first.close()
    drain(outbox)
    outbox.ack(third.key, 1)
    await waits[1]
    assert outbox.waiting_for_room == {}
