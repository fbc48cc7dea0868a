"""The reader of the output of the program `log`.

It gives the same bytes however the output is cut into pieces, and refuses invalid reports.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cluster.logs.blocks import PART, BlockReader, Reached
from agent.domain.errors import ClusterError
from tests.fakes.helper_log import HelperLog


def read(data: bytes, step: int, position: int = 0) -> list[bytes | Reached]:
    reader = BlockReader(position)
    return [item for at in range(0, len(data), step) for item in reader.feed(memoryview(data[at : at + step]))]


@given(st.binary(max_size=300), st.integers(0, 300), st.integers(1, 100), st.booleans())
def test_any_cuts_of_any_log(content: bytes, position: int, step: int, ended: bool) -> None:
    log = HelperLog()
    log.write(content)
    log.ended, log.dropped = ended, 3
    position = min(position, len(content))
    *parts, reached = read(log.blocks(position) + log.report(), step, position)
    assert b"".join(part for part in parts if isinstance(part, bytes)) == content[position:]
    assert reached == Reached(len(content), ended, 3 if ended else 0)


def test_a_long_block_comes_in_parts() -> None:
    log = HelperLog()
    log.write(bytes(range(256)) * 4096)
    parts = read(log.blocks(0), 1 << 15)
    assert b"".join(part for part in parts if isinstance(part, bytes)) == log.content
    assert {len(part) for part in parts if isinstance(part, bytes)} == {PART}


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[]\n",
        b'{"at": 1, "bytes": 3}\nabc',
        b'{"at": 0, "bytes": -3}\nabc',
        b'{"at": 0, "bytes": 99999999999}\nabc',
        b'{"end": {"size": 7, "dropped": 0}}\n',
        b'{"error": "no such file"}\n',
        b"{}\n",
        b"x" * 10_000,
    ],
)
def test_a_malformed_report_is_an_error(line: bytes) -> None:
    with pytest.raises(ClusterError) as caught:
        read(line, 1000)
    assert caught.value.retryable
