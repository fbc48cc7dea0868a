"""Numbers, windows, turns and resumption, without a stream."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.actions import Key
from agent.domain.errors import SchedulerError
from agent.domain.events import CommandStarted, Event, LogChunk, Source
from agent.domain.log_cursor import Cursor
from agent.domain.session_state import Resume, SessionState
from agent.scheduler.stream.outbox import Outbox, Outgoing
from agent.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from agent.scheduler.stream.session_outbox import Outlet

KEY = Key("a", 1, 2)
WINDOW = 1 << 17
BIG = 64 << 10


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(WINDOW, Metrics())


def event(number: int) -> Event:
    return CommandStarted(number, Cursor())


def drain(outbox: Outbox) -> list[Outgoing]:
    """Take everything that can be sent."""
    items = []
    while (item := outbox.take()) is not None:
        assert isinstance(item, Outgoing)
        items.append(item)
    return items


async def filled(outbox: Outbox, count: int, key: Key = KEY) -> Outlet:
    outlet = outbox.open(key)
    for number in range(1, count + 1):
        await outlet.send(event(number))
    return outlet


def kept(outbox: Outbox) -> float:
    return outbox.metrics.registry.get_sample_value("sealci_agent_events_unacknowledged") or 0.0


async def blocked(task: asyncio.Task[None]) -> bool:
    """Whether a task goes no further although everything that is ready has run."""
    for _ in range(5):
        await asyncio.sleep(0)
    return not task.done()


# ---- numbers


async def test_numbers_are_contiguous_from_one(outbox: Outbox) -> None:
    await filled(outbox, 3)
    assert drain(outbox) == [Outgoing(KEY, number, event(number)) for number in (1, 2, 3)]
    assert outbox.take() is None


async def test_acknowledgements_are_cumulative(outbox: Outbox) -> None:
    outlet = await filled(outbox, 3)
    settled = asyncio.create_task(outlet.wait_until_stored())
    drain(outbox)
    outbox.ack(KEY, 2)
    assert kept(outbox) == 1
    assert await blocked(settled)
    outbox.ack(KEY, 3)
    await settled
    assert kept(outbox) == 0
    assert outlet.used == 0


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
async def test_acknowledgements_that_make_no_sense_are_ignored(outbox: Outbox, key: Key, seq: int, kind: str) -> None:
    await filled(outbox, 3)
    outbox.take()
    outbox.take()  # the third was never sent
    outbox.ack(KEY, 1)
    outbox.ack(key, seq)
    assert outbox.ignored == {kind: 1}
    assert kept(outbox) == 2


# ---- joining


async def test_log_that_was_not_sent_is_joined(outbox: Outbox) -> None:
    outlet = outbox.open(KEY)
    for number in range(1, 101):
        await outlet.send(LogChunk(b"line\n", Cursor(total=5 * number)))
    assert drain(outbox) == [Outgoing(KEY, 1, LogChunk(b"line\n" * 100, Cursor(total=500)))]


async def test_log_that_was_sent_is_never_joined_to(outbox: Outbox) -> None:
    outlet = outbox.open(KEY)
    await outlet.send(LogChunk(b"1"))
    first = outbox.take()
    outbox.reset()
    await outlet.send(LogChunk(b"2"))
    assert drain(outbox) == [first, Outgoing(KEY, 2, LogChunk(b"2"))]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (LogChunk(b"1"), LogChunk(b"2", None, Source.AGENT)),
        (LogChunk(b"1", Cursor(total=1)), LogChunk(b"2")),  # the only exact place would be lost
        (LogChunk(bytes(BIG)), LogChunk(b"2")),
    ],
)
async def test_log_that_does_not_belong_together_is_not_joined(
    outbox: Outbox, first: LogChunk, second: LogChunk
) -> None:
    outlet = outbox.open(KEY)
    await outlet.send(first)
    await outlet.send(second)
    assert [item.event for item in drain(outbox)] == [first, second]


async def test_log_is_not_joined_over_another_event(outbox: Outbox) -> None:
    outlet = outbox.open(KEY)
    sent = [LogChunk(b"1"), event(1), LogChunk(b"2")]
    for each in sent:
        await outlet.send(each)
    assert [item.event for item in drain(outbox)] == sent


async def test_joined_log_is_at_most_64_kib(outbox: Outbox) -> None:
    outlet = outbox.open(KEY)
    for _ in range(3):
        await outlet.send(LogChunk(bytes(BIG // 2)))
    sizes = [len(item.event.data) for item in drain(outbox) if isinstance(item.event, LogChunk)]
    assert sizes == [BIG, BIG // 2]


# ---- the window


async def test_a_full_window_makes_the_sender_wait(outbox: Outbox) -> None:
    outlet = outbox.open(KEY)
    await outlet.send(LogChunk(bytes(BIG)))
    await outlet.send(event(1))
    second = asyncio.create_task(outlet.send(LogChunk(bytes(BIG))))
    third = asyncio.create_task(outlet.send(event(2)))
    assert await blocked(second)
    assert await blocked(third), "a later event overtook one that waits"
    drain(outbox)
    outbox.ack(KEY, 1)
    await second
    await third
    assert [type(item.event) for item in drain(outbox)] == [LogChunk, CommandStarted]
    assert outlet.used <= WINDOW


async def test_an_event_larger_than_the_window_passes_alone(outbox: Outbox) -> None:
    outlet = outbox.open(KEY)
    await outlet.send(LogChunk(bytes(2 * WINDOW)))
    assert len(drain(outbox)) == 1


async def test_a_sender_that_is_cancelled_leaves_no_trace(outbox: Outbox) -> None:
    outlet = outbox.open(KEY)
    await outlet.send(LogChunk(bytes(WINDOW)))
    waiting = asyncio.create_task(outlet.send(event(1)))
    assert await blocked(waiting)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    drain(outbox)
    outbox.ack(KEY, 1)
    await outlet.send(event(2))
    assert drain(outbox) == [Outgoing(KEY, 2, event(2))]


@pytest.mark.parametrize("how", ["close", "discard"])
async def test_a_closed_outlet_keeps_nobody_waiting_and_nothing(outbox: Outbox, how: str) -> None:
    outlet = outbox.open(KEY)
    await outlet.send(LogChunk(bytes(WINDOW)))
    waiting = asyncio.create_task(outlet.send(event(1)))
    settled = asyncio.create_task(outlet.wait_until_stored())
    assert await blocked(waiting)
    if how == "close":
        outlet.close()
    else:
        assert outbox.discard(KEY)
    await waiting
    await settled
    await outlet.send(event(2))
    assert outbox.take() is None
    assert (kept(outbox), outbox.sessions()) == (0, ())


# ---- turns


async def test_a_flood_delays_others_by_one_event(outbox: Outbox) -> None:
    await filled(outbox, 100, Key("flood"))
    await filled(outbox, 2, Key("b"))
    await filled(outbox, 2, Key("c"))
    order = [item.key.action_id for item in drain(outbox)]
    assert order[:7] == ["flood", "b", "c", "flood", "b", "c", "flood"]
    assert len(order) == 104


async def test_next_waits_for_an_event(outbox: Outbox) -> None:
    waiting = asyncio.create_task(outbox.next())
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    await filled(outbox, 1)
    assert await waiting == Outgoing(KEY, 1, event(1))


# ---- streams that come and go


async def test_after_a_reset_what_is_unacknowledged_is_sent_again_in_order(outbox: Outbox) -> None:
    await filled(outbox, 4)
    outbox.take()
    outbox.take()
    outbox.ack(KEY, 1)
    outbox.reset()
    assert outbox.sessions() == (SessionState(KEY, 4),)
    assert outbox.take() is None, "sent before the scheduler said where to go on"
    assert outbox.resume(Resume(KEY, 1))
    assert [item.seq for item in drain(outbox)] == [2, 3, 4]


async def test_resuming_acknowledges_what_is_stored(outbox: Outbox) -> None:
    outlet = await filled(outbox, 4)
    drain(outbox)
    outbox.reset()
    outbox.sessions()
    outbox.resume(Resume(KEY, 3))
    assert [item.seq for item in drain(outbox)] == [4]
    outbox.ack(KEY, 4)
    await outlet.wait_until_stored()


async def test_resuming_ahead_is_ignored_and_counted(outbox: Outbox) -> None:
    await filled(outbox, 2)
    outbox.take()
    outbox.reset()
    outbox.sessions()
    assert outbox.resume(Resume(KEY, 2)), "the second was never sent"
    assert outbox.ignored == {"resumed ahead": 1}
    assert [item.seq for item in drain(outbox)] == [1, 2]


async def test_a_new_session_does_not_wait_for_an_answer(outbox: Outbox) -> None:
    await filled(outbox, 1)
    outbox.sessions()
    await filled(outbox, 1, Key("new"))
    assert [item.key.action_id for item in drain(outbox)] == ["new"]


async def test_sessions_without_an_answer_go_on(outbox: Outbox) -> None:
    await filled(outbox, 1)
    outbox.sessions()
    assert outbox.unanswered(time.monotonic() - 1) == ()
    assert outbox.take() is None
    assert outbox.unanswered(time.monotonic() + 1) == (KEY,)
    assert [item.seq for item in drain(outbox)] == [1]
    assert outbox.unanswered(time.monotonic() + 1) == ()


# ---- memory that was lost


async def test_a_scheduler_that_forgot_is_handed_to_the_session(outbox: Outbox) -> None:
    calls: list[tuple[Key, Resume]] = []

    def forgotten(key: Key, resume: Resume) -> bool:
        calls.append((key, resume))
        return True

    outbox.on_forgotten = forgotten
    outlet = await filled(outbox, 3)
    drain(outbox)
    outbox.ack(KEY, 2)
    outbox.reset()
    outbox.sessions()
    settled = asyncio.create_task(outlet.wait_until_stored())
    assert not outbox.resume(Resume(KEY, 1))
    assert calls == [(KEY, Resume(KEY, 1))]
    await outlet.send(event(4))
    assert outbox.unanswered(time.monotonic() + 1) == ()
    assert outbox.take() is None
    outlet.restart(1)
    assert await blocked(settled), "nothing was acknowledged"
    await outlet.send(event(20))
    assert drain(outbox) == [Outgoing(KEY, 2, event(20))]
    outbox.ack(KEY, 2)
    await settled
    assert kept(outbox) == 0


async def test_without_a_callback_what_is_kept_goes_behind_a_notice(outbox: Outbox) -> None:
    outlet = await filled(outbox, 3)
    drain(outbox)
    outbox.ack(KEY, 2)
    outbox.reset()
    outbox.sessions()
    assert outbox.resume(Resume(KEY, 0))
    notice, rest = drain(outbox)
    assert notice.seq == 1
    assert isinstance(notice.event, LogChunk)
    assert notice.event.source is Source.AGENT
    assert b"2 events" in notice.event.data
    assert rest == Outgoing(KEY, 2, event(3))
    outbox.ack(KEY, 2)
    await outlet.wait_until_stored()


# ---- adoption and claims


async def test_an_adopted_session_is_named_and_numbered_by_the_scheduler(outbox: Outbox) -> None:
    outlet = outbox.open(KEY, adopted=True)
    await outlet.send(event(1))
    assert outbox.take() == SessionState(KEY, 0, adopted=True)
    assert outbox.take() is None
    assert outbox.unanswered(time.monotonic() + 1) == (KEY,)
    assert outbox.take() == SessionState(KEY, 0, adopted=True)
    assert outbox.resume(Resume(KEY, 41))
    assert drain(outbox) == [Outgoing(KEY, 42, event(1))]
    assert outbox.sessions() == (SessionState(KEY, 42),)


async def test_an_adopted_session_is_named_in_the_registration(outbox: Outbox) -> None:
    outbox.open(KEY, adopted=True)
    outbox.reset()
    assert outbox.sessions() == (SessionState(KEY, 0, adopted=True),)
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
    outlet = outbox.open(KEY)
    with pytest.raises(SchedulerError):
        await outlet.upload(None)  # type: ignore[arg-type]


# ---- anything, in any order


@settings(deadline=None)
@given(steps=st.lists(st.sampled_from(["log", "event", "take", "ack", "break"]), max_size=120))
def test_nothing_is_lost_doubled_or_reordered_whatever_happens(steps: list[str]) -> None:
    asyncio.run(walk(steps))


async def walk(steps: list[str]) -> None:
    """Play a scheduler that stores what it gets, over streams that break anywhere."""
    outbox = Outbox(1 << 30, Metrics())
    outlet = outbox.open(KEY)
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
                await outlet.send(LogChunk(piece, Cursor(total=len(sent_log))))
            case "event":
                count += 1
                await outlet.send(event(count))
            case "take":
                store(outbox.take())
            case "ack":
                outbox.ack(KEY, len(stored) // 2)
            case "break":
                outbox.reset()
                outbox.sessions()
                outbox.resume(Resume(KEY, max(len(stored) - 2, outlet.acknowledged)))
    while (item := outbox.take()) is not None:
        store(item)
    outbox.ack(KEY, len(stored))
    await outlet.wait_until_stored()
    assert b"".join(each.data for each in stored if isinstance(each, LogChunk)) == sent_log
    assert [each.index for each in stored if isinstance(each, CommandStarted)] == list(range(1, count + 1))
    assert kept(outbox) == 0
    assert outlet.used == 0


# ---- the window of all sessions


def keys(number: int) -> list[Key]:
    return [Key(f"flood-{index}", 1, 1) for index in range(number)]


async def test_many_floods_together_are_bounded() -> None:
    outbox = Outbox(1 << 20, Metrics(), 1 << 20)
    most, sent = 0, [0] * 50

    async def flood(index: int, key: Key) -> None:
        outlet = outbox.open(key)
        for _ in range(40):
            await outlet.send(LogChunk(bytes(BIG), Cursor()))
            sent[index] += 1
        await outlet.wait_until_stored()

    tasks = [asyncio.create_task(flood(index, key)) for index, key in enumerate(keys(50))]
    while not all(task.done() for task in tasks):
        most = max(most, outbox.used)
        await asyncio.sleep(0)
        if (item := outbox.take()) is not None:
            assert isinstance(item, Outgoing)
            outbox.ack(item.key, item.seq)
    await asyncio.gather(*tasks)
    assert sent == [40] * 50
    # One event of each is always allowed, so that nobody stands still for the others' sake.
    assert 1 << 20 < most <= (1 << 20) + 50 * (BIG + 256)
    assert (outbox.used, outbox.line) == (0, {})


async def test_who_waits_in_line_gets_the_room_of_another_in_turn() -> None:
    outbox = Outbox(WINDOW, Metrics(), 3 * (BIG + 256))
    first, second, third = (outbox.open(key) for key in keys(3))
    for outlet in (first, second, third):
        await outlet.send(LogChunk(bytes(BIG), Cursor()))
    drain(outbox)
    waits = [asyncio.create_task(outlet.send(event(1))) for outlet in (second, third)]
    assert all([await blocked(task) for task in waits])
    outbox.ack(first.key, 1)
    for task in waits:
        await task
    assert outbox.line == {}


async def test_who_waits_for_its_own_window_holds_up_nobody() -> None:
    outbox = Outbox(WINDOW, Metrics(), 3 * (BIG + 256))
    full, other = (outbox.open(key) for key in keys(2))
    for outlet in (full, outbox.open(KEY)):
        await outlet.send(LogChunk(bytes(BIG), Cursor()))
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
    assert outbox.line == {}


async def test_a_closed_session_gives_its_place_in_line_away() -> None:
    outbox = Outbox(WINDOW, Metrics(), BIG + 512)
    first, second, third = (outbox.open(key) for key in keys(3))
    for outlet in (first, second, third):
        await outlet.send(LogChunk(bytes(BIG), Cursor()))
    waits = [asyncio.create_task(outlet.send(event(1))) for outlet in (second, third)]
    assert all([await blocked(task) for task in waits])
    second.close()
    await waits[0]
    first.close()
    drain(outbox)
    outbox.ack(third.key, 1)
    await waits[1]
    assert outbox.line == {}
