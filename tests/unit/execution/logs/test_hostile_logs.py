"""The log of an action may hold any bytes. No bytes cause an error or show a secret, and the work is bounded.

The tests measure the work as the number of executed lines of Python (steps). `test_masking` also counts the steps of
the search for secrets.
"""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.console.terminal_text import COLOUR, UNPRINTABLE, LineSplitter
from agent.domain.events import CommandFinished, CommandStarted
from tests.fakes.steps import within
from tests.unit.execution.logs.test_forwarder import MARK, FakeSession

# The largest number of executed lines of Python (steps) for an empty log, for each byte of a log, and for each piece in
# which the log arrives.
STEPS, STEPS_PER_BYTE, STEPS_PER_PIECE = 20_000, 12, 2500
SECRETS = {"TOKEN": "correct-horse", "LINES": "first line\nsecond line", **{f"A{n}": "a" * n for n in range(4, 60)}}
PARTS = st.one_of(
    st.sampled_from([MARK + b"s:1\n", MARK + b"f:1:0\n", MARK + b"l:0:0\n", MARK, MARK[:7], b"\x1e", b"\x1e" * 50]),
    st.sampled_from([b"\n", b"\r", b"\0", b"\xff\xfe", b"\xf0\x9f", b"\x1b]0;", b"\x1b[" + b"9" * 99, b"\xc2\x9b2J"]),
    st.sampled_from([b"correct-", b"horse", b"first line\n", b"a" * 700, b"b" * 900, b"YS1h"]),
    st.binary(max_size=60),
)


def forward(pieces: list[bytes]) -> FakeSession:
    session = FakeSession(SECRETS, *pieces)
    limit = STEPS + STEPS_PER_BYTE * sum(map(len, pieces)) + STEPS_PER_PIECE * len(pieces)
    # Only the forwarding counts. The end of a Runner looks at the tasks of all event loops of the process.
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        within(limit, lambda: loop.run_until_complete(session.run()))
    return session


def check(session: FakeSession) -> None:
    """Check the sent events: no secret, at most two events per command, and text that terminals can show."""
    assert b"correct-horse" not in session.text
    assert b"aaaa" not in session.text
    assert len([each for each in session.events if isinstance(each, CommandStarted | CommandFinished)]) <= 4
    splitter = LineSplitter()
    lines = within(
        STEPS + STEPS_PER_BYTE * len(session.text), lambda: [*splitter.feed(session.text), *splitter.flush()]
    )
    for line in lines:
        assert not UNPRINTABLE.search(COLOUR.sub("", line).replace("\t", ""))


@given(st.lists(PARTS, max_size=25), st.integers(1, 400))
@settings(max_examples=30)
def test_any_bytes_of_a_log_are_forwarded(parts: list[bytes], size: int) -> None:
    log = b"".join(parts)
    check(forward([log[start : start + size] for start in range(0, len(log), size)]))


@pytest.mark.parametrize(
    "unit",
    [
        b"a",
        b"a\n",
        b"\n",
        b"\x1e",
        MARK,
        MARK + b"s:1\n",
        MARK + b"s:1",
        b"correct-",
        b"first line\n",
        b"\xff",
        b"\x1b[",
    ],
    ids=repr,
)
def test_a_log_of_one_repeated_text_costs_steps_by_its_bytes(unit: bytes) -> None:
    check(forward([(unit * 40_000)[:40_000]]))
