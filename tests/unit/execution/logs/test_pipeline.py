"""The log pipeline of a session: its output, and that the log resumes exactly at each cursor."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.logs.line_reader import Hole, LineReader, whole_second
from agent.domain.events import LogChunk
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogPiece, Marker, MarkerKind
from agent.execution.logs.masking import Masker
from agent.execution.logs.pipeline import CHUNK, MAX_ANCHORS, Limits, LogStream, MarkerSeen
from tests.fakes.kubelet_log import EPOCH, SECOND, KubeletLog, stamp

BEGIN = b"\0<0123456789abcdef:"
END = b">\n"
WIDE = Limits(1 << 20, 1 << 20)


class Markers:
    """A stand-in for MarkerReader. It takes the text `BEGIN kind command END` at any place of the log as a marker."""

    def __init__(self, start: Cursor | None = None) -> None:
        self.kept = b""

    @property
    def ended(self) -> bool:
        return False

    @property
    def buffered(self) -> int:
        return len(self.kept)

    def feed(self, data: bytes) -> list[bytes | Marker]:
        items: list[bytes | Marker] = []
        text = self.kept + data
        while True:
            before, found, after = text.partition(BEGIN)
            body, closed, rest = after.partition(END)
            if not (found and closed):
                break
            items += [before] if before else []
            items.append(Marker(MarkerKind(body[:1].decode()), int(body[1:] or b"0"), raw=BEGIN + body + END))
            text = rest
        keep = len(text) - len(before) if found else longest_border(text)
        self.kept = text[len(text) - keep :] if keep else b""
        text = text[: len(text) - keep]
        return [*items, text] if text else items

    def flush(self) -> list[bytes | Marker]:
        kept, self.kept = self.kept, b""
        return [kept] if kept else []


def longest_border(text: bytes) -> int:
    return next((size for size in range(len(BEGIN) - 1, 0, -1) if text.endswith(BEGIN[:size])), 0)


def started(command: int) -> bytes:
    return BEGIN + b"s%d" % command + END


def finished(command: int) -> bytes:
    return BEGIN + b"f%d" % command + END


LAST = BEGIN + b"l" + END


def stream(limits: Limits = WIDE, secrets: tuple[bytes, ...] = (), start: Cursor | None = None) -> LogStream:
    return LogStream(Markers, Masker(secrets), limits, start or Cursor())


def run(
    log: KubeletLog, into: LogStream, start: Cursor | None = None, block: int = 1 << 20
) -> list[LogChunk | MarkerSeen]:
    """Feed a log from the cursor `start` on into the LogStream `into`, `block` bytes per read. Return the output."""
    start = start or Cursor()
    body = log.body(whole_second(start.timestamp) if start.timestamp else "")
    reader = LineReader(start)
    out: list[LogChunk | MarkerSeen] = []
    for at in range(0, len(body), block):
        for item in reader.feed(body[at : at + block]):
            assert not isinstance(item, Hole)
            out += into.gap(item) if isinstance(item, LogGap) else into.feed(item)
    if gap := reader.finish():
        out += into.gap(gap)
    return out + into.finish()


def log_of(payload: bytes, piece: int = 1000) -> KubeletLog:
    log = KubeletLog(piece=piece)
    log.write(payload, EPOCH)
    return log


def flat(items: list[LogChunk | MarkerSeen]) -> list[bytes | Marker]:
    """Return the markers of `items` in order. Between two markers, join all text to one item."""
    out: list[bytes | Marker] = []
    for item in items:
        if isinstance(item, MarkerSeen):
            out.append(item.marker)
        elif out and isinstance(out[-1], bytes):
            out[-1] += item.data
        else:
            out.append(item.data)
    return out


def text(items: list[LogChunk | MarkerSeen]) -> bytes:
    return b"".join(item.data for item in items if isinstance(item, LogChunk))


def test_markers_come_out_in_their_place() -> None:
    payload = started(1) + b"one\n" + finished(1) + started(2) + b"no newline" + finished(2) + LAST
    for block in (1, 5, 17, 1000):
        out = run(log_of(payload), stream(), block=block)
        assert flat(out) == [
            Marker(MarkerKind.STARTED, 1),
            b"one\n",
            Marker(MarkerKind.FINISHED, 1),
            Marker(MarkerKind.STARTED, 2),
            b"no newline",
            Marker(MarkerKind.FINISHED, 2),
            Marker(MarkerKind.LAST, 0),
        ]
        totals = [item.cursor.total for item in out if item.cursor]
        assert totals == sorted(totals)
        assert totals[-1] == len(payload)
        assert [item.cursor.command for item in out if isinstance(item, MarkerSeen)] == [1, 0, 2, 0, 0], (
            "nothing runs behind an end"
        )


def test_the_position_of_each_marker_of_one_piece_is_known() -> None:
    parts = (b"a", started(1), started(2), b"b", finished(2), b"c")
    out = run(log_of(b"".join(parts)), stream())
    assert [item.cursor and item.cursor.total for item in out] == list(accumulate(map(len, parts)))


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_secret_in_two_commands_is_masked(block: int) -> None:
    payload = b"one sec" + finished(1) + started(2) + b"ret\n"
    assert flat(run(log_of(payload), stream(secrets=(b"secret",)), block=block)) == [
        b"one ",
        Marker(MarkerKind.FINISHED, 1),
        Marker(MarkerKind.STARTED, 2),
        b"***\n",
    ]


def test_text_that_is_no_secret_comes_out_behind_the_marker_and_resumes_there() -> None:
    payload = b"one sec" + finished(1) + started(2) + b"ond\n"
    log = log_of(payload)
    out = run(log, stream(secrets=(b"secret",)), block=1)
    assert text(out) == b"one second\n"
    behind = [item for item in out if isinstance(item, MarkerSeen)][-1].cursor
    assert (behind.total, behind.command, behind.reported) == (4, 2, len(payload) - 4)
    assert Cursor.decode(behind.encode()) == behind
    rest = run(log, stream(secrets=(b"secret",), start=behind), behind)
    assert flat(rest) == [b"second\n"]


def test_secrets_are_masked_over_pieces() -> None:
    log = log_of(b"the secret and\nsecret\n", piece=3)
    for block in (1, 3, 1000):
        assert text(run(log, stream(secrets=(b"secret",)), block=block)) == b"the *** and\n***\n"


def test_chunks_are_no_longer_than_allowed() -> None:
    line = b"x" * 199 + b"\n"
    piece = LogPiece(line * 2000, Cursor("t", 1, 200, 400_000))
    for secrets in ((), (b"xxxx",), (b"secret",)):
        out = stream(secrets=secrets).feed(piece)
        assert all(len(item.data) <= CHUNK for item in out if isinstance(item, LogChunk))
    assert text(stream().feed(piece)) == piece.data


def test_text_kept_back_makes_no_chunk_too_long() -> None:
    secret = b"".join(b"%d," % number for number in range(60))
    into = stream(secrets=(secret,))
    assert into.feed(LogPiece(secret[:100], Cursor("t", 1, 100, 100))) == []
    out = into.feed(LogPiece(b"." * 2 * CHUNK, Cursor("t", 1, 100 + 2 * CHUNK, 100 + 2 * CHUNK)))
    assert text(out) == secret[:100] + b"." * 2 * CHUNK
    assert max(len(item.data) for item in out if isinstance(item, LogChunk)) == CHUNK


def test_a_partial_line_passes_at_once() -> None:
    out = stream(secrets=(b"yes-secret",)).feed(LogPiece(b"go on? [y/N] ", Cursor("t", 1, 13, 13)))
    assert out == [LogChunk(b"go on? [y/N] ", Cursor("t", 1, 13, 13))]


def test_a_long_line_is_cut_with_a_notice() -> None:
    payload = b"short\n" + b"x" * 100 + b"\nnext\n" + b"y" * 12
    out = run(log_of(payload, 7), into := stream(Limits(10, 1000)), block=9)
    assert text(out) == (
        b"short\n" + b"x" * 10 + b"[line cut: 90 bytes left out]\nnext\n" + b"y" * 10 + b"[line cut: 2 bytes left out]"
    )
    assert into.left_out_of_lines == 92


def test_a_line_of_exactly_the_limit_is_whole() -> None:
    assert text(run(log_of(b"0123456789\n0123456789"), stream(Limits(10, 1000)), block=5)) == b"0123456789\n0123456789"


def test_a_cut_line_hides_a_secrets_beginning() -> None:
    payload = b"1234 secret-value\n"
    assert text(run(log_of(payload), stream(Limits(10, 1000), (b"secret-value",)))) == (
        b"1234 ***[line cut: 7 bytes left out]\n"
    )


def test_a_marker_in_text_that_is_left_out_still_counts() -> None:
    payload = b"x" * 50 + finished(1) + b"tail\n"
    assert flat(run(log_of(payload), stream(Limits(10, 1000)), block=7)) == [
        b"x" * 10 + b"[line cut: 40 bytes left out]",
        Marker(MarkerKind.FINISHED, 1),
        b"tail\n",
    ]


def test_the_total_is_cut_with_one_notice_and_markers_still_come_out() -> None:
    payload = b"line\n" * 10 + finished(1) + b"more\n" + LAST
    for block in (1, 13, 1000):
        out = run(log_of(payload), into := stream(Limits(1000, 42)), block=block)
        assert flat(out) == [
            b"line\n" * 8 + b"li\n[log cut at 42 bytes: the rest is left out]\n",
            Marker(MarkerKind.FINISHED, 1),
            Marker(MarkerKind.LAST, 0),
        ]
        assert into.left_out_of_total == 13


def test_a_cut_total_hides_a_secrets_beginning() -> None:
    assert text(run(log_of(b"1234 secret-value\n"), stream(Limits(1000, 10), (b"secret-value",)))) == (
        b"1234 ***\n[log cut at 10 bytes: the rest is left out]\n"
    )


def test_a_marker_that_crosses_the_total_writes_the_notice() -> None:
    payload = b"line\n" + finished(1) + b"more\n"
    assert text(run(log_of(payload), stream(Limits(1000, 8)))) == (
        b"line\n[log cut at 8 bytes: the rest is left out]\n"
    )


def test_the_notice_about_a_gap_has_its_own_line() -> None:
    log = log_of(b"held sec")
    into = stream(secrets=(b"secret",))
    reader = LineReader()
    out = [chunk for item in reader.feed(log.body()) if isinstance(item, LogPiece) for chunk in into.feed(item)]
    log.rotate()
    log.write(b"new\n", EPOCH + SECOND)
    out += run(log, into, reader.cursor)
    assert text(out).decode() == (
        f"held ***\n[gap in the log: lines between {stamp(EPOCH).decode()} and {stamp(EPOCH + SECOND).decode()} may be"
        " missing: the node began a new file there before the old one was read to its end]\nnew\n"
    )
    assert into.gaps == {True: 0, False: 1}
    # The cursor of the line about the log gap is the position after the gap.
    behind = [index for index, item in enumerate(out) if item.cursor and item.cursor.total >= len(b"held sec")]
    assert len(behind) == 3
    for index in behind[1:]:
        cursor = out[index].cursor or Cursor()
        assert text(run(log, stream(start=cursor), cursor)) == text(out[index + 1 :])


def test_a_gap_up_to_the_end_has_a_notice() -> None:
    into = stream()
    assert b"between T1 and the end may be missing: " in text(into.gap(LogGap("T1", "")))
    assert b"between T1 and the end are missing: " in text(into.gap(LogGap("T1", "", certain=True)))
    assert into.gaps == {True: 1, False: 1}


def test_the_number_of_anchors_is_bounded() -> None:
    into = stream(secrets=(b"\n".join([b"line"] * 500),))
    for number in range(400):
        end = number * 5 + 5
        assert into.feed(LogPiece(b"line\n", Cursor(f"t{number}", 1, 5, end))) == []
        assert len(into.anchors) <= MAX_ANCHORS
    assert into.finish()[-1].cursor == Cursor("t399", 1, 5, 2000)


def test_the_beginning_of_a_marker_without_its_end_is_text() -> None:
    for block in (1, 1000):
        assert text(run(log_of(b"abc" + BEGIN[:5]), stream(), block=block)) == b"abc" + BEGIN[:5]


STEPS = st.sampled_from([0, 0, 1, SECOND // 2])
PARTS = st.one_of(
    st.sampled_from([b"\n", b"\n", b"secret", b"sec", b"base64:c2VjcmV0", BEGIN[:5], LAST, b"\xff\r\0"]),
    st.integers(1, 9).map(started),
    st.integers(1, 9).map(finished),
    st.text("secrt \n", max_size=40).map(str.encode),
)
WRITES = st.lists(st.tuples(STEPS, PARTS), max_size=30)
LIMITS = st.builds(Limits, st.sampled_from([5, 20, 1000]), st.sampled_from([30, 100, 100_000]))


@given(WRITES, LIMITS, st.integers(1, 120), st.integers(1, 120), st.sampled_from([4, 1000]))
def test_every_cursor_resumes_exactly(
    writes: list[tuple[int, bytes]], limits: Limits, block: int, other: int, piece: int
) -> None:
    """From any cursor on, an adopting agent sends exactly what the dead agent would have sent."""
    log, at = KubeletLog(piece=piece), EPOCH
    for step, payload in writes:
        at += step
        log.write(payload, at)
    secrets = (b"secret", b"rtsec\nse")
    out = run(log, stream(limits, secrets), block=block)
    whole = flat(out)
    assert flat(run(log, stream(limits, secrets), block=other)) == whole
    for index, item in enumerate(out):
        assert item.cursor is not None
        start = Cursor.decode(item.cursor.encode())
        rest = run(log, stream(limits, secrets, start), start, other)
        if isinstance(item, LogChunk) and b"[log cut" in item.data and start.total <= limits.total:
            # A marker crossed the size limit, so the line "[log cut" came early. The resumed stream repeats the line.
            continue
        assert flat([*out[: index + 1], *rest]) == whole
    for segment in whole:
        if isinstance(segment, bytes):
            assert b"secret" not in segment
            assert b"c2VjcmV0" not in segment
            assert BEGIN not in segment


@given(WRITES, LIMITS, st.lists(st.integers(0, 2000), max_size=6), st.sampled_from([4, 1000]))
def test_a_stream_continues_over_broken_connections(
    writes: list[tuple[int, bytes]], limits: Limits, cuts: list[int], piece: int
) -> None:
    log, at = KubeletLog(piece=piece), EPOCH
    for step, payload in writes:
        at += step
        log.write(payload, at)
    into = stream(limits, (b"secret",))
    out: list[LogChunk | MarkerSeen] = []
    cursor = Cursor()
    for cut in [*sorted(cuts), 1 << 30]:
        reader = LineReader(cursor)
        for item in reader.feed(log.body(whole_second(cursor.timestamp) if cursor.timestamp else "")[:cut]):
            assert isinstance(item, LogPiece)
            out += into.feed(item)
        cursor = reader.cursor
    assert flat(out + into.finish()) == flat(run(log, stream(limits, (b"secret",))))
