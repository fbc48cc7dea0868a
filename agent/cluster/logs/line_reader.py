"""The body of a log request becomes payload with positions, from which another request can go on exactly.

A `LineReader` lives as long as one HTTP response. The kubelet prefixes each line with its timestamp; `sinceTime` is
served from the whole second, piece by piece, so a resumed body repeats lines that are done and may begin with the rest
of an older line, without a prefix. The reader strips the prefixes, drops what the cursor covers (by timestamp and
ordinal, since lines share nanoseconds, then by offset, since a cut may lie in a line of megabytes) and says when the
cursor's own line is not served again: the node has rotated it away, and what followed it.

A line that has no timestamp where one must be is not the container's (the rest of an older line, or the kubelet's own
words) and is dropped up to its newline; the beginning of the first one is kept in `foreign`.

Known limit: a clock of the node that is set back looks like a gap when the log is opened again.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime

from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogPiece

# Nanoseconds have a fixed width in the kubelet's answers, older ones and other runtimes write fewer digits.
PREFIX = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) ")
LONGEST_PREFIX = 36
ZONE = 29
SECOND = 19
START = Cursor()
FOREIGN_KEPT = 256
# A file of the node's lives three seconds at least (the kubelet's shortest interval), so no shorter hole hides one.
HOLE = 2.0
HOLES_KEPT = 64


@dataclass(frozen=True, slots=True)
class Hole:
    """So much time between two lines of one body that a whole file of the node's may have come and gone in it."""

    since: str
    until: str
    seconds: float


class LineReader:
    """Reads one body. `cursor` is the position after everything that was returned.

    A piece without data says only where reading goes on; its `end` then counts from the start of the line it lies in,
    so that `offset` is the column. The first piece of a body, and the first after a gap, are of that kind, unless the
    body begins where a line began: then it comes with the first line.

    While it is `watchful`, it says holes in front of the line that ends them. `served_again`: the body has begun the
    file behind a hole once more; no more of it is taken.

    Raises:
        ValueError: the cursor's timestamp is none.
    """

    def __init__(self, resume: Cursor = START) -> None:
        self.watchful = False
        self.served_again = False
        self.holes: deque[bytes] = deque(maxlen=HOLES_KEPT)
        self.resume = resume
        self.wanted = resume.timestamp.encode()
        self.wanted_time = nanoseconds(self.wanted) if self.wanted else 0
        self.seeking = bool(self.wanted)
        self.skip = resume.offset
        self.synced = False
        self.timestamp = b""
        self.count = 0
        self.column = 0
        self.total = resume.total
        self.inside = False
        self.dropping = False
        self.carry = b""
        self.foreign = b""
        self.parts: list[bytes] = []
        self.items: list[LogPiece | LogGap | Hole] = []

    @property
    def cursor(self) -> Cursor:
        """Where to go on after a cut."""
        if not self.synced:
            return self.resume
        return self.position()

    def feed(self, body: bytes) -> list[LogPiece | LogGap | Hole]:
        """Take the next bytes of the body and return what is new in them."""
        data = self.carry + body if self.carry else body
        self.carry = b""
        at, bulk = 0, True
        while at < len(data) and not self.served_again:
            if self.inside or self.dropping:
                at = self.go_on(data, at)
            elif bulk and self.synced and (taken := self.lines(data, at)):
                at += taken
            else:
                # One line that does not fit the fast way is followed by others: no second try in this block.
                bulk = not self.synced
                at = self.begin(data, at)
        self.close_piece()
        items, self.items = self.items, []
        return items

    def finish(self) -> LogGap | None:
        """Return the gap when the whole log was served and the cursor's line is not in it."""
        return LogGap(self.resume.timestamp, "") if self.seeking else None

    # ------------------------------------------------------------------------------------------------------- fast way

    def lines(self, data: bytes, at: int) -> int:
        """Take all complete lines from a line's start on, up to a hole, and return how many bytes these are.

        None are taken when some prefix differs in its form from the last one seen.
        """
        width = len(self.timestamp) + 1
        zone = self.timestamp[ZONE:] + b" "
        end = data.rfind(b"\n", at) + 1
        lines = data[at:end].split(b"\n")
        lines.pop()
        if {line[ZONE:width] for line in lines} != {zone}:
            return 0
        if self.watchful and (straight := self.straight(lines)) < len(lines):
            lines = lines[:straight]
            if not lines:
                return 0
            end = at + sum(map(len, lines)) + len(lines)
        payloads = [line[width:] for line in lines]
        payloads.append(b"")
        payload = b"\n".join(payloads)
        self.parts.append(payload)
        self.total += len(payload)
        last = lines[-1]
        self.column = len(last) - width + 1
        self.count_same(lines, last[: width - 1])
        return end - at

    def straight(self, lines: list[bytes]) -> int:
        """Return how many lines follow each other without a hole or a step back."""
        before = self.timestamp[:SECOND]
        last = lines[-1][:SECOND]
        if not self.holes and (last == before or 0 <= seconds(last) - seconds(before) < HOLE):
            return len(lines)
        for index, line in enumerate(lines):
            second = line[:SECOND]
            if second != before and not 0 <= seconds(second) - seconds(before) < HOLE:
                return index
            if self.holes and line[: len(self.timestamp)] in self.holes:
                return index
            before = second
        return len(lines)

    def count_same(self, lines: list[bytes], timestamp: bytes) -> None:
        """Set the ordinal of the last line among the lines of its timestamp."""
        same = 0
        for line in reversed(lines):
            if not line.startswith(timestamp):
                break
            same += 1
        else:
            if timestamp == self.timestamp:
                same += self.count
        self.timestamp, self.count = timestamp, same

    # ------------------------------------------------------------------------------------------------- line by line

    def begin(self, data: bytes, at: int) -> int:
        """Read the prefix of one line and return the index after it."""
        match = PREFIX.match(data, at)
        if match and self.start_line(match[1]):
            return match.end()
        if len(data) - at < LONGEST_PREFIX and data.find(b"\n", at) < 0:
            self.carry = data[at:]
            return len(data)
        self.dropping = True
        return at

    def start_line(self, timestamp: bytes) -> bool:
        """Enter a line: it may be the one that is sought, prove that that one is gone, or be new.

        False: it only looked like the start of a line.
        """
        order = self.compare(timestamp) if self.seeking else 0
        if order is None:
            return False
        if self.watchful and not (self.seeking or self.skip) and self.timestamp and timestamp != self.timestamp:
            self.look_back(timestamp)
            if self.served_again:
                return True
        self.count = self.count + 1 if timestamp == self.timestamp else 1
        self.timestamp = timestamp
        self.column = 0
        self.inside = True
        if self.seeking and order > 0:
            self.items.append(LogGap(self.resume.timestamp, timestamp.decode()))
            self.skip = 0
            self.seeking = False
        elif self.seeking and order == 0 and self.count == self.resume.count:
            self.seeking = False
        if not (self.seeking or self.skip or self.synced):
            self.sync()
        return True

    def look_back(self, timestamp: bytes) -> None:
        """Say the hole that the line of this time ends; it is known again if it is served again."""
        try:
            passed = (nanoseconds(timestamp) - nanoseconds(self.timestamp)) / 1e9
        except ValueError:
            return
        if passed < 0:
            self.served_again = timestamp in self.holes
        elif passed >= HOLE:
            self.close_piece()
            self.items.append(Hole(self.timestamp.decode(), timestamp.decode(), passed))
            self.holes.append(timestamp)
            self.synced = False  # the next piece says anew where it begins

    def compare(self, timestamp: bytes) -> int | None:
        """Return whether it is before (-1), at (0) or after (1) the cursor's, None when it is no timestamp."""
        if len(timestamp) == len(self.wanted) and timestamp[ZONE:] == self.wanted[ZONE:]:
            return (timestamp > self.wanted) - (timestamp < self.wanted)
        try:
            time = nanoseconds(timestamp)
        except ValueError:
            return None
        return (time > self.wanted_time) - (time < self.wanted_time)

    def go_on(self, data: bytes, at: int) -> int:
        """Take what the current line has in the block and return the index after it."""
        end = data.find(b"\n", at) + 1 or len(data)
        complete = data[end - 1] == 0x0A
        if self.dropping:
            if len(self.foreign) < FOREIGN_KEPT:
                self.foreign += data[at : min(end, at + FOREIGN_KEPT)]
            self.dropping = not complete
            return end
        self.column += end - at
        self.inside = not complete
        if self.seeking:
            return end
        if self.skip:
            dropped = min(self.skip, end - at)
            self.skip -= dropped
            at += dropped
            if self.skip or (at == end and complete):
                return end
            self.sync(end - at)
        if at < end:
            self.parts.append(data[at:end])
            self.total += end - at
        return end

    # ------------------------------------------------------------------------------------------------------- positions

    def position(self, before: int = 0) -> Cursor:
        """Return the position `before` bytes before the current one, in the current line."""
        timestamp = self.timestamp.decode()
        return Cursor(timestamp, self.count, self.column - before, self.total, self.resume.command)

    def sync(self, before: int = 0) -> None:
        """Say where the next piece begins."""
        self.synced = True
        self.items.append(LogPiece(b"", self.position(before)))

    def close_piece(self) -> None:
        """Make a piece of the payload gathered in this block."""
        if self.parts:
            self.items.append(LogPiece(b"".join(self.parts), self.position()))
            self.parts = []


def nanoseconds(timestamp: bytes) -> int:
    """Return an RFC 3339 timestamp as nanoseconds since 1970.

    Raises:
        ValueError: it is none.
    """
    text = timestamp.decode("ascii")
    zone = "+00:00" if text.endswith("Z") else text[-6:]
    fraction = text[19 : -1 if text.endswith("Z") else -6].lstrip(".")
    seconds = int(datetime.fromisoformat(text[:19] + zone).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))


def seconds(text: bytes) -> int:
    """Return the seconds of the first 19 bytes of a timestamp, whose zone is not looked at; 0 when it is none."""
    try:
        return int(datetime.fromisoformat(text.decode("ascii") + "+00:00").timestamp())
    except ValueError:
        return 0


def whole_second(timestamp: str) -> str:
    """Return the second a timestamp lies in, in UTC, as `sinceTime` takes it."""
    seconds = nanoseconds(timestamp.encode()) // 1_000_000_000
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
