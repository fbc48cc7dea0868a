"""The marker reader returns the same items for every way to cut the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.supervisor.markers import Marker, MarkerKind, MarkerReader

NONCE = "0123456789abcdef"
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
    """Read a log in pieces, and check the number of buffered bytes after each piece."""
    reader = MarkerReader(NONCE)
    items: list[bytes | Marker] = []
    fed = b""
    for piece in pieces:
        fed += piece
        new = reader.feed(piece)
        assert b"" not in new
        items += new
        assert reader.buffered <= len(PREFIX) + 15
    buffered = reader.buffered
    rest = reader.flush()
    assert rest == fed[len(fed) - buffered :]
    assert reader.buffered == 0
    return join_texts([*items, rest])


@pytest.mark.parametrize(
    ("log", "items"),
    [
        (b"", []),
        (b"plain\n", [b"plain\n"]),
        (PREFIX + b"s:1\n", [STARTED]),
        (b"no newline" + PREFIX + b"f:12:0\nmore", [b"no newline", FINISHED, b"more"]),
        (PREFIX + b"f:12:0\n" + PREFIX + b"s:1\n", [FINISHED, STARTED]),
        (b"\x1e" + PREFIX + b"s:1\n\n", [b"\x1e", STARTED, b"\n"]),
        (PREFIX + PREFIX + b"s:1\n", [PREFIX, STARTED]),
        (PREFIX + b"l:0:143\n\xff\x00", [LAST, b"\xff\x00"]),
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
    written = {marker: raw for raw, marker in WRITTEN.items()}
    known = [item for item in whole if isinstance(item, bytes) or item in written]
    if known == whole:
        assert b"".join(item if isinstance(item, bytes) else written[item] for item in whole) == log


def test_only_a_possible_marker_is_buffered() -> None:
    reader = MarkerReader(NONCE)
    assert reader.feed(b"text\x1esea") == [b"text"]
    assert reader.buffered == 4
    assert reader.feed(b"l\n") == [b"\x1eseal\n"]
    assert reader.buffered == 0
    assert reader.feed(PREFIX + b"f:1") == []
    assert reader.buffered == len(PREFIX) + 3
    assert reader.feed(b":7\n.") == [Marker(MarkerKind.FINISHED, 1, 7), b"."]


def test_text_without_markers_is_not_copied() -> None:
    data = bytes(1 << 20)
    (same,) = MarkerReader(NONCE).feed(data)
    assert same is data


@pytest.mark.parametrize("nonce", ["", "short", "with space 0123456", "a" * 65, "regex.*regex.*"])
def test_a_malformed_nonce_is_refused(nonce: str) -> None:
    with pytest.raises(ValueError, match="nonce"):
        MarkerReader(nonce)
