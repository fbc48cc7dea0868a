"""The reader of log bodies: it removes timestamps, resumes at any byte, and reports gaps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.logs.line_reader import LineReader, nanoseconds, whole_second
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogPiece
from tests.fakes.kubelet_log import EPOCH, SECOND, KubeletLog, stamp

T0 = stamp(EPOCH)
T1 = stamp(EPOCH + 1)
T2 = stamp(EPOCH + SECOND)


def read(body: bytes, resume: Cursor | None = None, cut: int = 0) -> tuple[bytes, list[LogGap], LineReader]:
    reader = LineReader(resume or Cursor())
    items = []
    for start in range(0, len(body), cut or len(body) or 1):
        items += reader.feed(body[start : start + (cut or len(body))])
    data = b"".join(item.data for item in items if isinstance(item, LogPiece))
    return data, [item for item in items if isinstance(item, LogGap)], reader


def write(log: KubeletLog, lines: list[tuple[int, bytes]]) -> None:
    at = EPOCH
    for step, payload in lines:
        at += step
        log.write(payload, at)


@pytest.mark.parametrize("cut", [0, 1, 7, 31, 40])
@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"", b""),
        (T0 + b" one\n", b"one\n"),
        (T0 + b" one", b"one"),
        (T0 + b" \n" + T1 + b" two\n", b"\ntwo\n"),
        (T0 + b" \xff\x00\r x\r\n", b"\xff\x00\r x\r\n"),
        (b"2026-11-24T08:00:00Z old\n2026-11-24T08:00:00.5Z kubelet\n", b"old\nkubelet\n"),
        (b"2026-11-24T08:00:00.000000001+02:00 a\n2026-11-24T06:00:00.000000002Z b\n", b"a\nb\n"),
        (T0 + b" a\n" + T0 + b" " + T1 + b" quoted\n", b"a\n" + T1 + b" quoted\n"),
        # The kubelet's own messages have no timestamp and are not log.
        (T0 + b" a\nfailed to create fsnotify watcher: too many open files", b"a\n"),
        (T0 + b" a\nfailed\n" + T1 + b" b\n", b"a\nb\n"),
    ],
)
def test_timestamps_are_removed(body: bytes, payload: bytes, cut: int) -> None:
    data, gaps, reader = read(body, cut=cut)
    assert (data, gaps) == (payload, [])
    assert reader.cursor.total == len(payload)


def test_the_cursor_names_the_line_its_ordinal_and_the_column() -> None:
    body = T0 + b" a\n" + T1 + b" b\n" + T1 + b" cdef"
    for cut in (0, 1, 13):
        assert read(body, cut=cut)[2].cursor == Cursor(T1.decode(), 2, 4, 8)


def test_ordinals_are_counted_over_blocks() -> None:
    reader = LineReader()
    for _ in range(3):
        reader.feed((T0 + b" x\n") * 5)
    assert reader.cursor == Cursor(T0.decode(), 15, 2, 30)


def test_half_a_timestamp_at_the_end_waits_for_the_rest() -> None:
    _, _, reader = read(T0 + b" a\n" + T1[:20])
    assert reader.cursor == Cursor(T0.decode(), 1, 2, 2)


def test_the_first_piece_has_the_start_of_its_line() -> None:
    reader = LineReader(Cursor(T0.decode(), 1, 2, 10, 3))
    items = reader.feed(T0 + b" abc\n" + T1 + b" d\n")
    assert items == [
        LogPiece(b"", Cursor(T0.decode(), 1, 2, 10, 3)),
        LogPiece(b"c\nd\n", Cursor(T1.decode(), 1, 2, 14, 3)),
    ]


def test_after_a_whole_line_the_first_piece_has_the_start_of_the_next() -> None:
    for body in (T0 + b" ab\n" + T1 + b" c", T0 + b" ab\n" + b"foreign\n" + T1 + b" c"):
        assert LineReader(Cursor(T0.decode(), 1, 3, 3)).feed(body) == [
            LogPiece(b"", Cursor(T1.decode(), 1, 0, 3)),
            LogPiece(b"c", Cursor(T1.decode(), 1, 1, 4)),
        ]


def test_an_offset_may_reach_over_later_lines() -> None:
    reader = LineReader(Cursor(T0.decode(), 1, 6, 6))
    assert reader.feed(T0 + b" abc\n" + T1 + b" def\n") == [
        LogPiece(b"", Cursor(T1.decode(), 1, 2, 6)),
        LogPiece(b"f\n", Cursor(T1.decode(), 1, 4, 8)),
    ]


def test_the_rest_of_an_older_line_is_dropped() -> None:
    data, gaps, _ = read(b"rest of an old line\n" + T0 + b" done\n" + T1 + b" new\n", Cursor(T0.decode(), 1, 5, 5))
    assert (data, gaps) == (b"new\n", [])


def test_the_same_instant_in_another_zone_is_the_same_line() -> None:
    at = EPOCH + 5
    data, gaps, _ = read(stamp(at, 120) + b" done\nx\n" + stamp(at + 1) + b" new\n", Cursor(stamp(at).decode(), 1, 5))
    assert (data, gaps) == (b"new\n", [])


@pytest.mark.parametrize(
    ("body", "payload", "gaps"),
    [
        (T2 + b" later\n", b"later\n", [LogGap(T0.decode(), T2.decode())]),
        (T0 + b" a\n" + T2 + b" later\n", b"later\n", [LogGap(T0.decode(), T2.decode())]),
        (stamp(EPOCH - 9) + b" older\n" + T1 + b" b\n", b"b\n", [LogGap(T0.decode(), T1.decode())]),
        (T0 + b" a\n" + T0 + b" b\n" + T2 + b" later\n", b"later\n", []),
    ],
)
def test_a_cursor_line_that_the_body_lacks_is_a_gap(body: bytes, payload: bytes, gaps: list[LogGap]) -> None:
    data, said, reader = read(body, Cursor(T0.decode(), 2, 2))
    assert (data, said) == (payload, gaps)
    assert reader.finish() is None


def test_a_body_without_the_line_is_a_gap_to_the_end() -> None:
    for body in (b"", stamp(EPOCH - 9) + b" older\n"):
        data, gaps, reader = read(body, Cursor(T0.decode(), 1, 2, 7))
        assert (data, gaps) == (b"", [])
        assert reader.finish() == LogGap(T0.decode(), "")
        assert reader.cursor == Cursor(T0.decode(), 1, 2, 7)


def test_an_error_message_of_the_kubelet_is_kept_apart() -> None:
    data, _, reader = read(b"unable to retrieve container logs for containerd://abc", cut=9)
    assert data == b""
    assert reader.foreign == b"unable to retrieve container logs for containerd://abc"
    for cut in (0, 100):
        assert 256 <= len(read(b"y" * 10_000, cut=cut)[2].foreign) < 512


def test_a_line_with_a_malformed_timestamp_is_dropped() -> None:
    body = b"2026-99-99T99:99:99.000000000+99:99 x\n" + T0 + b" a\n" + T1 + b" b\n"
    assert read(body, Cursor(T0.decode(), 1, 2))[:2] == (b"b\n", [])


def test_a_cursor_without_a_time_is_refused() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        LineReader(Cursor("yesterday", 1))


def test_times() -> None:
    assert nanoseconds(stamp(EPOCH + 123, -90)) == EPOCH + 123
    assert nanoseconds(b"2026-11-24T08:00:00.5Z") % SECOND == SECOND // 2
    assert whole_second("2026-11-24T10:00:00.999999999+02:00") == "2026-11-24T08:00:00Z"


STEPS = st.sampled_from([0, 0, 1, 999, SECOND // 3, SECOND])
PAYLOADS = st.one_of(
    st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"") + b"\n"),
    st.binary(min_size=1, max_size=80),
)


@given(
    lines=st.lists(st.tuples(STEPS, PAYLOADS), max_size=25),
    piece=st.sampled_from([3, 16, 1000]),
    zone=st.sampled_from([0, 120, -210]),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    block=st.integers(1, 90),
)
def test_any_cut_resumes_at_the_next_byte(
    lines: list[tuple[int, bytes]], piece: int, zone: int, cuts: list[int], block: int
) -> None:
    """The connection breaks after any number of bytes, any number of times. Every byte arrives once."""
    log = KubeletLog(zone, piece)
    write(log, lines)
    got, cursor = b"", Cursor()
    for length in [*cuts, 1 << 30]:
        body = log.body(whole_second(cursor.timestamp) if cursor.timestamp else "")[:length]
        data, gaps, reader = read(body, cursor, block)
        assert gaps == []
        got += data
        cursor = reader.cursor
        assert cursor.total == len(got)
    assert got == log.payload()


@given(
    before=st.lists(st.tuples(STEPS, PAYLOADS), min_size=1, max_size=8),
    after=st.lists(st.tuples(STEPS, PAYLOADS), min_size=1, max_size=8),
    block=st.integers(1, 90),
)
def test_rotation_loses_nothing_without_a_gap(
    before: list[tuple[int, bytes]], after: list[tuple[int, bytes]], block: int
) -> None:
    log = KubeletLog()
    write(log, before)
    data, _, reader = read(log.body(), cut=block)
    log.rotate()
    write(log, [(SECOND * 100, b"new file\n"), *after])
    rest, gaps, _ = read(log.body(whole_second(reader.cursor.timestamp)), reader.cursor, block)
    assert len(gaps) == 1
    assert data + rest == log.payload()
