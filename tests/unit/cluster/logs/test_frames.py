"""The reader of the helper's frames.

It returns exactly the bytes of the log, however its input is cut. Text of the commands that looks like a frame does not
deceive it.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.logs.frames import MAX_FAILURES, Frame, FrameReader
from tests.fakes.helper_log import KEY, HelperLog, frame, last_frame


def read(data: bytes, step: int = 1 << 20, key: int = KEY) -> list[Frame]:
    reader = FrameReader(key)
    return [each for at in range(0, len(data), step) for each in reader.feed(data[at : at + step])] + reader.resync()


def test_a_frame_has_its_position_and_its_bytes() -> None:
    data = frame(7, b"one\n") + frame(11, b"go on? ") + last_frame(18, 5)
    assert read(data) == [Frame(7, b"one\n"), Frame(11, b"go on? "), Frame(18, b"", 5)]


TEXT = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"\r\n", b"\r", b"\n", b"\r\r\n", b"\0", b"\x1b]5397;", frame(3, b"x\n", 0), b"\xff"]),
    ),
    max_size=20,
).map(b"".join)


@given(TEXT, st.integers(1, 40), st.integers(1, 50), st.booleans())
def test_any_text_is_read_exactly(text: bytes, largest: int, step: int, keeps_cr: bool) -> None:
    """The text stays the same whether the node removes a CR before LF (containerd) or not (CRI-O)."""
    log = HelperLog(keeps_cr=keeps_cr)
    log.write(text, largest=largest)
    frames = read(log.body(), step)
    assert b"".join(each.data for each in frames) == text
    assert [each.offset for each in frames] == list(range(0, len(text), largest))


@given(TEXT, st.integers(1, 40), st.integers(0, 2000), st.integers(0, 2000))
def test_a_torn_stream_yields_only_whole_frames(text: bytes, largest: int, cut: int, until: int) -> None:
    log = HelperLog()
    log.write(text, largest=largest)
    body = log.body()
    for found in read(body[:cut] + body[until:], 7):
        assert text[found.offset : found.end] == found.data


def test_text_that_is_a_whole_frame_is_no_frame() -> None:
    """A stream that begins within a frame begins with the text of the commands. This text can be a forged frame."""
    forged = frame(900, b"forged\n", 0) + last_frame(900, 0, 0)
    body = frame(0, b"before " + forged + b" after\n")
    for start in range(len(body)):
        assert [each for each in read(body[start:] + frame(99, b"x\n")) if each.offset == 900] == []


def test_frames_behind_a_torn_frame_are_found_when_nothing_more_comes() -> None:
    reader = FrameReader(KEY)
    assert reader.feed(frame(0, b"x" * 5000)[:100] + frame(5000, b"next\n")) == []
    assert reader.pending
    assert reader.resync() == [Frame(5000, b"next\n")]
    assert not reader.pending


@pytest.mark.parametrize("tail", [b"", b"\x1b", b"\x1b]5397;12", b"\x1b]5397;12;5;00000000;\x07ab"])
def test_a_given_up_frame_leaves_nothing_behind(tail: bytes) -> None:
    reader = FrameReader(KEY)
    assert reader.feed(tail) == []
    assert reader.pending is bool(tail)
    assert reader.resync() == []
    assert not reader.pending
    assert reader.feed(frame(1, b"a\n")) == [Frame(1, b"a\n")]


def test_a_reader_gives_up_after_many_false_headers() -> None:
    """For each false header, the reader computes the checksum of a whole frame. So it accepts only a limited number."""
    reader = FrameReader(KEY)
    false = b"\x1b]5397;1;65000;00000000;\x07" * 10_000
    assert reader.feed(false) == []
    assert reader.unusable
    assert reader.failures == MAX_FAILURES + 1
