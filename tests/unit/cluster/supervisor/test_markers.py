"""The marker reader returns the same items for every way to cut the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.supervisor.markers import Marker, MarkerKind, MarkerReader
from agent.domain.log_cursor import Cursor

NONCE = "0123456789abcdef"
COUNT = 20
PREFIX = b"\x1esealci:" + NONCE.encode() + b":"
STARTED = Marker(MarkerKind.STARTED, 1)
FINISHED = Marker(MarkerKind.FINISHED, 12, 0)
LAST = Marker(MarkerKind.LAST, 0, 143)
WRITTEN = {PREFIX + b"s:1\n": STARTED, PREFIX + b"f:12:0\n": FINISHED, PREFIX + b"l:0:143\n": LAST}
LOOKALIKES = [
    b"\x1e",
    b"\x1e\x1e",
    b"\x1esealci:",
    b"\x1esealci:ffffffffffffffff:s:1\n",
    PREFIX + b"\n",
    PREFIX + b"x:1\n",
    PREFIX + b"s:1",
    PREFIX + b"s:1:0\n",
    PREFIX + b"f:1\n",
    PREFIX + b"f:1:0000\n",
    PREFIX + b"s:" + b"1" * 40 + b"\n",
    PREFIX + b"s:1\r\n",
]

FORGED = [
    PREFIX + b"s:0\n",
    PREFIX + b"s:%d\n" % (COUNT + 1),
    PREFIX + b"f:%d:0\n" % (COUNT + 1),
    PREFIX + b"f:0:0\n",
    PREFIX + b"l:0:0\nwork goes on\n",
]


def join_texts(items: list[bytes | Marker]) -> list[bytes | Marker]:
    """Return the items with adjacent texts joined."""
    result: list[bytes | Marker] = []
    for item in items:
        if isinstance(item, bytes) and result and isinstance(result[-1], bytes):
            result[-1] += item
        elif item != b"":
            result.append(item)
    return result


def read(pieces: list[bytes]) -> list[bytes | Marker]:
    """Read a log in pieces. Check after each piece that the reader buffers at most one marker."""
    reader = MarkerReader(NONCE, COUNT)
    items: list[bytes | Marker] = []
    fed = b""
    for piece in pieces:
        fed += piece
        new = reader.feed(piece)
        assert b"" not in new
        items += new
        assert reader.buffered <= len(PREFIX) + 15
        assert raw([*items]) == fed[: len(fed) - reader.buffered]
    items += reader.flush()
    assert reader.buffered == 0
    assert raw(items) == fed
    return join_texts(items)


def raw(items: list[bytes | Marker]) -> bytes:
    return b"".join(item if isinstance(item, bytes) else item.raw for item in items)


@pytest.mark.parametrize(
    ("log", "items"),
    [
        (b"", []),
        (b"plain\n", [b"plain\n"]),
        (PREFIX + b"s:1\n", [STARTED]),
        (b"no newline" + PREFIX + b"f:12:0\nmore", [b"no newline", FINISHED, b"more"]),
        (PREFIX + b"s:1\n" + PREFIX + b"f:1:3\n", [STARTED, Marker(MarkerKind.FINISHED, 1, 3)]),
        (PREFIX + b"s:1\n" + PREFIX + b"s:3\n", [STARTED, Marker(MarkerKind.STARTED, 3)]),
        (PREFIX + b"f:12:0\n" + PREFIX + b"s:1\n", [FINISHED, PREFIX + b"s:1\n"]),
        (b"\x1e" + PREFIX + b"s:1\n\n", [b"\x1e", STARTED, b"\n"]),
        (PREFIX + PREFIX + b"s:1\n", [PREFIX, STARTED]),
        (b"a" + PREFIX + b"l:0:143\n", [b"a", LAST]),
        (PREFIX + b"l:0:143\n" + PREFIX + b"l:0:143\n", [PREFIX + b"l:0:143\n", LAST]),
        # A marker that is not possible at its position stays in the log as text. An example is an end marker before its
        # start marker.
        *((look, [look]) for look in FORGED),
        *((look, [look]) for look in LOOKALIKES),
        *((look + PREFIX + b"s:1\n", [look, STARTED]) for look in LOOKALIKES),
    ],
)
def test_a_log_cut_anywhere_gives_the_same_items(log: bytes, items: list[bytes | Marker]) -> None:
    assert read([log]) == items
    assert read([log[at : at + 1] for at in range(len(log))]) == items
    for at in range(len(log)):
        assert read([log[:at], log[at:]]) == items


part = st.one_of(
    st.sampled_from([*WRITTEN, *LOOKALIKES, PREFIX[:9], PREFIX]),
    st.lists(st.sampled_from([0x1E, 0x0A, *b"sealci:01fl", 0xFF]), max_size=12).map(bytes),
)


@given(st.lists(part, max_size=8), st.data())
def test_every_cut_gives_the_same_items(parts: list[bytes], data: st.DataObject) -> None:
    log = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=10)))
    pieces = [log[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    whole = read([log])
    assert read(pieces) == whole
    markers = [item for item in whole if isinstance(item, Marker)]
    assert len(markers) <= 2 * COUNT + 1
    starts = [marker.command for marker in markers if marker.kind is MarkerKind.STARTED]
    assert starts == sorted(set(starts))


def test_only_a_possible_marker_is_buffered() -> None:
    reader = MarkerReader(NONCE, COUNT)
    assert reader.feed(b"text\x1esea") == [b"text"]
    assert reader.buffered == 4
    assert reader.feed(b"l\n") == [b"\x1eseal\n"]
    assert reader.buffered == 0
    assert reader.feed(PREFIX + b"f:1") == []
    assert reader.buffered == len(PREFIX) + 3
    assert reader.feed(b":7\n.") == [Marker(MarkerKind.FINISHED, 1, 7), b"."]


def test_text_without_markers_is_not_copied() -> None:
    data = bytes(1 << 20)
    (same,) = MarkerReader(NONCE, COUNT).feed(data)
    assert same is data


@pytest.mark.parametrize("nonce", ["", "short", "with space 0123456", "a" * 65, "regex.*regex.*"])
def test_a_malformed_nonce_is_refused(nonce: str) -> None:
    with pytest.raises(ValueError, match="nonce"):
        MarkerReader(nonce, 1)


def test_forged_markers_are_output_in_few_pieces() -> None:
    real = PREFIX + b"s:1\n"
    reader = MarkerReader(NONCE, 3)
    items = reader.feed(real + (PREFIX + b"s:1\n" + PREFIX + b"l:0:0\n" + PREFIX + b"f:2:00\n") * 5000)
    assert [item for item in items if isinstance(item, Marker)] == [STARTED, Marker(MarkerKind.FINISHED, 2, 0)]
    assert len(items) == 4
    assert not reader.ended


def test_a_last_marker_counts_only_at_the_end() -> None:
    reader = MarkerReader(NONCE, 3)
    assert reader.feed(b"work\n" + PREFIX + b"l:0:0\n") == [b"work\n"]
    assert reader.ended
    assert reader.feed(b"") == []
    assert reader.ended
    assert reader.feed(b"hidden work\n") == [PREFIX + b"l:0:0\nhidden work\n"]
    assert not reader.ended
    assert reader.feed(PREFIX + b"l:0:7\n") == []
    assert reader.flush() == [Marker(MarkerKind.LAST, 0, 7)]
    assert not reader.ended


def test_a_resumed_reader_goes_on_with_the_command_that_runs() -> None:
    again = PREFIX + b"s:2\n"
    assert MarkerReader(NONCE, 3, Cursor(100, command=2)).feed(again) == [again]
    assert MarkerReader(NONCE, 3, Cursor(100, command=2)).feed(PREFIX + b"f:2:0\n") == [
        Marker(MarkerKind.FINISHED, 2, 0)
    ]
    # The cursor is at byte 100, but the events of the markers up to byte 150 were already sent. So the reader reads
    # these markers a second time.
    assert MarkerReader(NONCE, 3, Cursor(100, command=2, reported=150)).feed(again) == [Marker(MarkerKind.STARTED, 2)]
