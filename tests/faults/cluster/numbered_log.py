"""A writer whose log can be held against what was stored: numbered lines that say when they were written.

`program` is what an action runs; an `Account` is made of a stored log, and knows which lines are missing and whether a
mark stands exactly there. Both are told how many lines there are, so that nothing is taken from the agent's word.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

LINE = re.compile(rb"(\d{8}) (\d{19}) x{70}")
TAIL = re.compile(rb"[ 0-9]{0,29}x{1,70}")
# What a container runtime passes on at once; so much of a file can come after its follower has left it.
PASSED_ON = 64 << 10
BEGUN = re.compile(rb"\d{1,8}( \d{0,19}( x{0,69})?)?")
SIZE = 100
GAP = re.compile(rb"\[gap in the log: lines between (\S+) and (\S+) (may be|are) missing: .*\]")
# Between the clock that a line names and the node's stamp on it lie a pipe and a busy machine.
APART = 2.0

WRITER = """
import os, sys, time
number, out = 0, sys.stdout.buffer
for step in sys.argv[1:]:
    verb, *values = step.split(":")
    if verb == "wait":
        while not os.path.exists(values[0]):
            time.sleep(0.02)
    elif verb == "print":
        out.write(values[0].encode())
        out.flush()
    else:
        count, rate = map(int, values)
        began = time.monotonic()
        for each in range(1, count + 1):
            number += 1
            out.write(b"%08d %d " % (number, time.time_ns()) + b"x" * 70 + b"\\n")
            if each % 50 == 0 or each == count:
                out.flush()
                time.sleep(max(0, began + each * 100 / rate - time.monotonic()))
"""


def program(*steps: str) -> str:
    """Return the command: "write:LINES:BYTES A SECOND", "wait:FILE", "print:TEXT"."""
    return " ".join(["python3", "-c", shlex.quote(WRITER), *map(shlex.quote, steps)])


def stamped(timestamp: bytes) -> float:
    """Return a timestamp of the node's as seconds since 1970."""
    return datetime.fromisoformat(timestamp.decode()[:26] + "+00:00").timestamp()


@dataclass
class Mark:
    """A gap as it is said: behind line `after`, in front of the next; seconds since 1970."""

    after: int
    since: float
    until: float
    certain: bool


@dataclass
class Account:
    """What is in a log of `total` lines: `lost` counts lines, `unmarked` those of them where no mark stands.

    `torn` counts holes that only the node can know of: it begins a new file within a line, a follower goes on with the
    rest of that line, and what the runtime still put at the end of the old file is served to nobody.
    """

    total: int
    marks: list[Mark] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    foreign: list[bytes] = field(default_factory=list)
    wrong_spans: list[str] = field(default_factory=list)
    unmarked: list[tuple[int, int]] = field(default_factory=list)
    lost: int = 0
    torn: int = 0

    @classmethod
    def of(cls, log: bytes, total: int) -> Account:
        """Take a log apart. A line that a mark cuts off counts as lost."""
        account = cls(total)
        times = {0: 0.0}
        tails: dict[int, bytes] = {}
        for line in log.splitlines():
            if found := LINE.fullmatch(line):
                number = int(found[1])
                account.numbers.append(number)
                times[number] = int(found[2]) / 1e9
            elif found := GAP.fullmatch(line):
                last = account.numbers[-1] if account.numbers else 0
                account.marks.append(Mark(last, stamped(found[1]), stamped(found[2]), found[3] == b"are"))
                if account.foreign and BEGUN.fullmatch(account.foreign[-1]):
                    account.foreign.pop()
            elif TAIL.fullmatch(line):
                tails[account.numbers[-1] if account.numbers else 0] = line
            else:
                account.foreign.append(line)
        account.compare(times, tails)
        return account

    def compare(self, times: dict[int, float], tails: dict[int, bytes]) -> None:
        """Hold the marks against the holes in the numbers; behind the lines of `tails` stands the rest of one."""
        marked = {mark.after: mark for mark in self.marks}
        holes = {before for before, number in pairwise([0, *self.numbers, self.total + 1]) if number > before + 1}
        self.foreign += [tail for before, tail in tails.items() if before not in holes]
        for before, number in pairwise([0, *self.numbers, self.total + 1]):
            mark = marked.get(before)
            if number > before + 1:
                self.lost += number - before - 1
                if mark is None and before in tails and (number - before) * SIZE <= PASSED_ON:
                    self.torn += 1
                elif mark is None:
                    self.unmarked.append((before, number))
            if mark and number <= self.total:
                off = max(abs(mark.since - times[before]), abs(mark.until - times[number]))
                if off > APART:
                    self.wrong_spans.append(f"{mark} is {off:.1f} s off its lines")

    @property
    def doubled(self) -> int:
        """How many lines came again."""
        return len(self.numbers) - len(set(self.numbers))

    @property
    def reordered(self) -> int:
        """How many lines came before one that is older."""
        return sum(one > two for one, two in zip(self.numbers, self.numbers[1:], strict=False))

    def check(self) -> None:
        """Nothing doubled or out of order, nothing missing where nothing is said, every span that of its lines."""
        assert (self.doubled, self.reordered, self.foreign) == (0, 0, [])
        assert self.unmarked == []
        assert self.wrong_spans == []
        empty = [mark for mark in self.marks if mark.certain and mark.after + 1 in self.numbers]
        assert empty == [], "said to be certain, and nothing is missing"

    def __str__(self) -> str:
        certain = sum(mark.certain for mark in self.marks)
        return (
            f"{self.total} lines, lost {self.lost}, marks {len(self.marks)} ({certain} certain), "
            f"unmarked {len(self.unmarked)}, torn {self.torn}, doubled {self.doubled}, reordered {self.reordered}"
        )
