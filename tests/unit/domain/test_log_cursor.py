"""Cursors: the bytes that the scheduler stores, and the cursors of an older release."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.log_cursor import Cursor

NUMBERS = st.integers(0, 1 << 60)


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_a_cursor_is_read_as_it_was_written(offset: int, command: int, reported: int, column: int) -> None:
    cursor = Cursor(offset, command, reported, column)
    assert Cursor.decode(cursor.encode()) == cursor
    assert len(cursor.encode()) <= 120


def test_no_bytes_are_the_start_of_the_log() -> None:
    assert Cursor.decode(b"") == Cursor()


@pytest.mark.parametrize("data", [b"1|2026-11-24T08:00:00.000000001Z|1|2|3|4", b"1|t|1|2|3|4|5", b"1|" + b"\xff" * 50])
def test_a_cursor_of_an_older_release_names_no_position_and_is_kept(data: bytes) -> None:
    """A scheduler of this release still returns such a cursor to an agent unchanged."""
    cursor = Cursor.decode(data)
    assert cursor.older == data
    assert (cursor.offset, cursor.encode()) == (0, data)


@pytest.mark.parametrize("data", [b"3|1|2|3|4", b"2|1|2|3", b"2|1|2|3|4|5", b"2|-1|0|0|0", b"2|x|0|0|0", b"\xff", b"2"])
def test_other_bytes_are_no_cursor(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a log cursor"):
        Cursor.decode(data)
