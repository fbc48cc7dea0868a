"""The log pipeline of a session: its output, and that the log resumes exactly at each cursor."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.domain.events import LogChunk
from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogPiece, Marker, MarkerKind
from agent.execution.logs.masking import Masker
from agent.execution.logs.pipeline import CHUNK, LogStream, MarkerSeen

BEGIN = b"\0<0123456789abcdef:"
END = b">\n"
WIDE = 1 << 20


class Markers:
    """A stand-in for MarkerReader. It takes the text `BEGIN kind command END` at any place of the log as a marker."""

    def __init__(self, start: Cursor | None = None) -> None:
        self.kept = b""

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


def stream(max_line: int = WIDE, secrets: tuple[bytes, ...] = (), start: Cursor | None = None) -> LogStream:
    return LogStream(Markers, Masker(secrets), max_line, start or Cursor())


def run(
    log: bytes, into: LogStream, start: Cursor | None = None, block: int = 1 << 20, dropped: int = 0
) -> list[LogChunk | MarkerSeen]:
    """Feed a log, from the cursor `start` on, into a LogStream in pieces of `block` bytes. Return the output."""
    out: list[LogChunk | MarkerSeen] = []
    for at in range(start.offset if start else 0, len(log), block):
        out += into.feed(LogPiece(log[at : at + block], at))
    return out + into.finish(dropped)


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
        out = run(payload, stream(), block=block)
        assert flat(out) == [
            Marker(MarkerKind.STARTED, 1),
            b"one\n",
            Marker(MarkerKind.FINISHED, 1),
            Marker(MarkerKind.STARTED, 2),
            b"no newline",
            Marker(MarkerKind.FINISHED, 2),
            Marker(MarkerKind.LAST, 0),
        ]
        totals = [item.cursor.offset for item in out if item.cursor]
        assert totals == sorted(totals)
        assert totals[-1] == len(payload)
        assert [item.cursor.command for item in out if isinstance(item, MarkerSeen)] == [1, 0, 2, 0, 0], (
            "nothing runs behind an end"
        )


def test_the_position_of_each_marker_of_one_piece_is_known() -> None:
    parts = (b"a", started(1), started(2), b"b", finished(2), b"c")
    out = run(b"".join(parts), stream())
    assert [item.cursor and item.cursor.offset for item in out] == list(accumulate(map(len, parts)))


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_secret_in_two_commands_is_masked(block: int) -> None:
    payload = b"one sec" + finished(1) + started(2) + b"ret\n"
    assert flat(run(payload, stream(secrets=(b"secret",)), block=block)) == [
        b"one ",
        Marker(MarkerKind.FINISHED, 1),
        Marker(MarkerKind.STARTED, 2),
        b"***\n",
    ]


def test_text_that_is_no_secret_comes_out_behind_the_marker_and_resumes_there() -> None:
    payload = b"one sec" + finished(1) + started(2) + b"ond\n"
    out = run(payload, stream(secrets=(b"secret",)), block=1)
    assert text(out) == b"one second\n"
    behind = [item for item in out if isinstance(item, MarkerSeen)][-1].cursor
    assert (behind.offset, behind.command, behind.reported) == (4, 2, len(payload) - 4)
    assert Cursor.decode(behind.encode()) == behind
    rest = run(payload, stream(secrets=(b"secret",), start=behind), behind)
    assert flat(rest) == [b"second\n"]


def test_secrets_are_masked_over_pieces() -> None:
    log = b"the secret and\nsecret\n"
    for block in (1, 3, 1000):
        assert text(run(log, stream(secrets=(b"secret",)), block=block)) == b"the *** and\n***\n"


def test_chunks_are_no_longer_than_allowed() -> None:
    line = b"x" * 199 + b"\n"
    piece = LogPiece(line * 2000, 0)
    for secrets in ((), (b"xxxx",), (b"secret",)):
        out = stream(secrets=secrets).feed(piece)
        assert all(len(item.data) <= CHUNK for item in out if isinstance(item, LogChunk))
    assert text(stream().feed(piece)) == piece.data


def test_text_kept_back_makes_no_chunk_too_long() -> None:
    secret = b"".join(b"%d," % number for number in range(60))
    into = stream(secrets=(secret,))
    assert into.feed(LogPiece(secret[:100], 0)) == []
    out = into.feed(LogPiece(b"." * 2 * CHUNK, 100))
    assert text(out) == secret[:100] + b"." * 2 * CHUNK
    assert max(len(item.data) for item in out if isinstance(item, LogChunk)) == CHUNK


def test_a_partial_line_passes_at_once() -> None:
    out = stream(secrets=(b"yes-secret",)).feed(LogPiece(b"go on? [y/N] ", 0))
    assert out == [LogChunk(b"go on? [y/N] ", Cursor(13, column=13))]


def test_a_long_line_is_cut_with_a_notice() -> None:
    payload = b"short\n" + b"x" * 100 + b"\nnext\n" + b"y" * 12
    out = run(payload, into := stream(10), block=9)
    assert text(out) == (
        b"short\n" + b"x" * 10 + b"[line cut: 90 bytes left out]\nnext\n" + b"y" * 10 + b"[line cut: 2 bytes left out]"
    )
    assert into.left_out_of_lines == 92


def test_a_line_of_exactly_the_limit_is_whole() -> None:
    assert text(run(b"0123456789\n0123456789", stream(10), block=5)) == b"0123456789\n0123456789"


def test_a_cut_line_hides_a_secrets_beginning() -> None:
    payload = b"1234 secret-value\n"
    assert text(run(payload, stream(10, (b"secret-value",)))) == (b"1234 ***[line cut: 7 bytes left out]\n")


def test_a_marker_in_text_that_is_left_out_still_counts() -> None:
    payload = b"x" * 50 + finished(1) + b"tail\n"
    assert flat(run(payload, stream(10), block=7)) == [
        b"x" * 10 + b"[line cut: 40 bytes left out]",
        Marker(MarkerKind.FINISHED, 1),
        b"tail\n",
    ]


def test_bytes_over_the_limit_of_the_log_have_one_notice() -> None:
    """The helper drops these bytes. The text before them can be the beginning of a secret that continues in them."""
    payload = b"line\n" + finished(1) + b"1234 secr"
    for block in (1, 13, 1000):
        out = run(payload, into := stream(secrets=(b"secret-value",)), block=block, dropped=99)
        assert flat(out) == [
            b"line\n",
            Marker(MarkerKind.FINISHED, 1),
            b"1234 ***\n[log cut at %d bytes: 99 bytes are left out]\n" % len(payload),
        ]
        assert into.left_out_of_total == 99


def test_the_notice_about_a_gap_has_its_own_line() -> None:
    into = stream(secrets=(b"secret",))
    out = into.feed(LogPiece(b"held sec", 0)) + into.gap(LogGap(8, 1000)) + into.feed(LogPiece(b"new\n", 1008))
    out += into.finish()
    assert text(out) == b"held ***\n[gap in the log: 1000 bytes are missing: the node no longer has them]\nnew\n"
    assert (into.gaps, into.missing) == (1, 1000)
    # The cursor of the notice about the gap is the position after the gap.
    assert [item.cursor for item in out] == [
        Cursor(5, column=5),
        Cursor(8, column=8),
        Cursor(1008),
        Cursor(1012),
    ]


def test_a_gap_at_the_start_of_a_line_adds_no_line() -> None:
    into = stream()
    out = into.feed(LogPiece(b"one\n", 0)) + into.gap(LogGap(4, 1))
    assert text(out) == b"one\n[gap in the log: 1 bytes are missing: the node no longer has them]\n"


def test_the_beginning_of_a_marker_without_its_end_is_text() -> None:
    for block in (1, 1000):
        assert text(run(b"abc" + BEGIN[:5], stream(), block=block)) == b"abc" + BEGIN[:5]


PARTS = st.one_of(
    st.sampled_from([b"\n", b"\n", b"secret", b"sec", b"base64:c2VjcmV0", BEGIN[:5], LAST, b"\xff\r\0"]),
    st.integers(1, 9).map(started),
    st.integers(1, 9).map(finished),
    st.text("secrt \n", max_size=40).map(str.encode),
)
LOGS = st.lists(PARTS, max_size=30).map(b"".join)
LIMITS = st.sampled_from([5, 20, 1000])


@settings(max_examples=300)
@given(LOGS, LIMITS, st.integers(1, 120), st.integers(1, 120))
def test_every_cursor_resumes_exactly(log: bytes, max_line: int, block: int, other: int) -> None:
    """An adopting agent sends, from any cursor on, what the dead agent would have sent."""
    secrets = (b"secret", b"rtsec\nse")
    out = run(log, stream(max_line, secrets), block=block)
    whole = flat(out)
    assert flat(run(log, stream(max_line, secrets), block=other)) == whole
    for index, item in enumerate(out):
        assert item.cursor is not None
        start = Cursor.decode(item.cursor.encode())
        rest = run(log, stream(max_line, secrets, start), start, other)
        assert flat([*out[: index + 1], *rest]) == whole
    for segment in whole:
        if isinstance(segment, bytes):
            assert b"secret" not in segment
            assert b"c2VjcmV0" not in segment
            assert BEGIN not in segment
