"""A writer of numbered lines with timestamps, and an account of the lines that are missing in the stored log.

`program` returns a command for an action, which writes the lines. An `Account` of a stored log lists the missing lines
and checks that there is a gap marker at each place where lines are missing, and nowhere else. The test passes the
number of lines to both, so that no number comes from the agent.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

LINE = re.compile(rb"(\d{8}) (\d{19}) x{70}")
TAIL = re.compile(rb"[ 0-9]{0,29}x{1,70}")
# Number of bytes that a container runtime writes to a log file at once. The kubelet may lose that many bytes when the
# file is rotated.
PASSED_ON = 64 << 10
BEGUN = re.compile(rb"\d{1,8}( \d{0,19}( x{0,69})?)?")
SIZE = 100
GAP = re.compile(rb"\[gap in the log: lines between (\S+) and (\S+) (may be|are) missing: .*\]")
# Maximum number of seconds between the time in a line and the node's timestamp of the line. The pipe and a busy machine
# delay the line.
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
    """Return a command that executes these steps in order.

    The forms of a step are "write:LINES:BYTES PER SECOND", "wait:FILE" and "print:TEXT".
    """
    return " ".join(["python3", "-c", shlex.quote(WRITER), *map(shlex.quote, steps)])


def seconds_of(timestamp: bytes) -> float:
    """Convert a timestamp of the node to seconds since 1970."""
    return datetime.fromisoformat(timestamp.decode()[:26] + "+00:00").timestamp()


@dataclass
class Mark:
    """A gap marker in a log, after the line with the number `after`.

    The marker states that lines from `since` to `until` are missing, in seconds since 1970.
    """

    after: int
    since: float
    until: float
    certain: bool


@dataclass
class Account:
    """The result of reading a stored log that should have `total` numbered lines.

    `lost` counts missing lines. `unmarked` lists the holes without a gap marker. `torn` counts holes that no reader of
    the log can detect: the node begins a new file within a line, so the kubelet continues with the rest of that line
    and does not serve the last bytes of the old file.
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
        """Read a log that should have `total` numbered lines.

        If a gap marker cuts off the end of a line, this line counts as lost.
        """
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
                account.marks.append(Mark(last, seconds_of(found[1]), seconds_of(found[2]), found[3] == b"are"))
                if account.foreign and BEGUN.fullmatch(account.foreign[-1]):
                    account.foreign.pop()
            elif TAIL.fullmatch(line):
                tails[account.numbers[-1] if account.numbers else 0] = line
            else:
                account.foreign.append(line)
        account.compare(times, tails)
        return account

    def compare(self, times: dict[int, float], tails: dict[int, bytes]) -> None:
        """Compare the gap markers with the holes in the line numbers.

        `times` has the time of each line, by its number. `tails` has the last bytes of lines whose beginning is
        missing. The key of such a rest is the number of the line before it.
        """
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
        """Return the number of repeated lines."""
        return len(self.numbers) - len(set(self.numbers))

    @property
    def reordered(self) -> int:
        """Return how often a line stands directly before a line with a lower number."""
        return sum(one > two for one, two in zip(self.numbers, self.numbers[1:], strict=False))

    def check(self) -> None:
        """Check that no line is doubled, reordered or missing without a gap marker.

        Also check that the times in each marker are right.
        """
        assert (self.doubled, self.reordered, self.foreign) == (0, 0, [])
        assert self.unmarked == []
        assert self.wrong_spans == []
        empty = [mark for mark in self.marks if mark.certain and mark.after + 1 in self.numbers]
        assert empty == [], "markers of certain gaps where no line is missing"

    def __str__(self) -> str:
        certain = sum(mark.certain for mark in self.marks)
        return (
            f"{self.total} lines, lost {self.lost}, marks {len(self.marks)} ({certain} certain), "
            f"unmarked {len(self.unmarked)}, torn {self.torn}, doubled {self.doubled}, reordered {self.reordered}"
        )
