"""Turn the body of a log response into payload with positions, from which another request can go on exactly.

A `LineReader` lives as long as one HTTP response. The kubelet puts a timestamp before each line. `sinceTime` has whole
seconds, so the body of a resumed request repeats lines that were read before. The body may also begin with the rest
of an older line, without a timestamp. The reader removes the timestamps and drops everything before the cursor, the
position where the last request stopped. To find the cursor, the reader compares timestamps, then counts the lines of
one timestamp, then counts bytes. Bytes count because a connection may break in the middle of a line of megabytes. If
the body lacks the cursor's own line, the node has rotated the line away, and the reader reports a gap.

A line without a timestamp is not a line of the container. The line is the rest of an older line or a message of the
kubelet. The reader drops such lines, and keeps the start of the first such line in `foreign`.

Known limit: a clock of the node that is set back looks like a gap when the log is opened again.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TypeVar

from agent.domain.log_cursor import Cursor
from agent.domain.observations import LogGap, LogPiece

T = TypeVar("T", bytes, int)

# The kubelet writes nanoseconds with a fixed width. Older kubelets and other runtimes write fewer digits.
PREFIX = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) ")
# Maximum number of bytes of a timestamp and the space after it.
LONGEST_PREFIX = 36
# Index of the time zone in a timestamp with nanoseconds. `SECOND` is the number of bytes of a timestamp up to the
# seconds.
ZONE = 29
SECOND = 19
START = Cursor()
# Maximum number of bytes that the reader keeps of the first line without a timestamp.
FOREIGN_KEPT = 256
# Smallest time in seconds between two log lines in which the node may have written and removed a whole log file. The
# kubelet checks the size of log files at most every 3 s, so no log file is removed sooner.
HOLE = 2.0
# Maximum number of holes (see class `Hole`) that a reader remembers.
HOLES_KEPT = 64


class Order(Enum):
    """Whether a line comes before or after the line in which the cursor (the position to resume from) lies."""

    BEFORE = "before"
    AT = "at"
    AFTER = "after"
    NOT_A_TIME = "not a time"


@dataclass(frozen=True, slots=True)
class Hole:
    """The time between two lines of one response, in which the node may have written and removed a whole log file."""

    since: str
    until: str
    seconds: float


class LineReader:
    """Reads the body of one log response. `cursor` is the position after everything that the reader has returned.

    A `LogPiece` without data only reports the position where the next piece begins. The first piece of a body and the
    first piece after a gap are of this kind. The `offset` of this position counts bytes from the start of its line.

    While `watchful` is true, the reader reports a `Hole` before the line that follows the hole. `served_again` becomes
    true when the body repeats the node's log file after a hole. The reader then ignores the rest of the body.

    Raises:
        ValueError: the timestamp in `resume` is not a timestamp.
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
        """The position from which to resume."""
        if not self.synced:
            return self.resume
        return self.position()

    def feed(self, body: bytes) -> list[LogPiece | LogGap | Hole]:
        """Read the next bytes of the body. Return the pieces, gaps and holes that lie after the cursor."""
        data = self.carry + body if self.carry else body
        self.carry = b""
        at, bulk = 0, True
        while at < len(data) and not self.served_again:
            if self.inside or self.dropping:
                at = self.go_on(data, at)
            elif bulk and self.synced and (taken := self.lines(data, at)):
                at += taken
            else:
                # If the fast way (`lines`) refuses a line, it often refuses the next lines too. Therefore it is not
                # tried again in this block.
                bulk = not self.synced
                at = self.begin(data, at)
        self.close_piece()
        items, self.items = self.items, []
        return items

    def finish(self) -> LogGap | None:
        """Return a gap if the body, which has ended, did not contain the line of the cursor, else None."""
        return LogGap(self.resume.timestamp, "") if self.seeking else None

    # ---- the fast way to read a body: many lines at once

    def lines(self, data: bytes, at: int) -> int:
        """Read all complete lines from index `at` of `data`, up to the first `Hole`. Return their number of bytes.

        Read nothing and return 0 if a timestamp has another form than the timestamp of the last line.
        """
        width = len(self.timestamp) + 1
        zone = self.timestamp[ZONE:] + b" "
        end = data.rfind(b"\n", at) + 1
        lines = data[at:end].split(b"\n")
        lines.pop()
        if {line[ZONE:width] for line in lines} != {zone}:
            return 0
        if self.watchful and (found := self.count_without_hole(lines)) < len(lines):
            lines = lines[:found]
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

    def count_without_hole(self, lines: list[bytes]) -> int:
        """Return the number of lines before the first `Hole`, or before the first step back in time."""
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
        """Set `count` to the number of lines so far that have `timestamp`, the timestamp of the last line."""
        same = 0
        for line in reversed(lines):
            if not line.startswith(timestamp):
                break
            same += 1
        else:
            if timestamp == self.timestamp:
                same += self.count
        self.timestamp, self.count = timestamp, same

    # ---- the slow way to read a body: line by line

    def begin(self, data: bytes, at: int) -> int:
        """Read the timestamp of the line that begins at index `at`. Return the index after the timestamp."""
        match = PREFIX.match(data, at)
        if match and self.start_line(match[1]):
            return match.end()
        if len(data) - at < LONGEST_PREFIX and data.find(b"\n", at) < 0:
            self.carry = data[at:]
            return len(data)
        self.dropping = True
        return at

    def start_line(self, timestamp: bytes) -> bool:
        """Begin a line with this timestamp. The line is before, at or after the line of the cursor.

        Return False if the text is not a valid time, so that it only looks like the start of a line.
        """
        order = None
        if self.seeking and (order := self.compare(timestamp)) is Order.NOT_A_TIME:
            return False
        if self.watchful and self.reached(timestamp):
            self.look_back(timestamp)
            if self.served_again:
                return True
        self.count = self.count + 1 if timestamp == self.timestamp else 1
        self.timestamp = timestamp
        self.column = 0
        self.inside = True
        if order is not None:
            self.seek(order)
        if not (self.synced or self.seeking or self.skip):
            self.sync()
        return True

    def reached(self, timestamp: bytes) -> bool:
        """Return whether the reader has passed the cursor, and the line before has another timestamp than this one."""
        return not (self.seeking or self.skip) and bool(self.timestamp) and timestamp != self.timestamp

    def seek(self, order: Order) -> None:
        """End the search for the cursor's line if the current line is that line, or with a gap if it comes later."""
        if order is Order.AFTER:
            self.items.append(LogGap(self.resume.timestamp, self.timestamp.decode()))
            self.skip = 0
            self.seeking = False
        elif order is Order.AT and self.count == self.resume.count:
            self.seeking = False

    def look_back(self, timestamp: bytes) -> None:
        """Report a `Hole` if at least `HOLE` seconds lie between the last line and the line with this timestamp.

        If the body repeats a line that followed an earlier hole, set `served_again`.
        """
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
            self.synced = False  # The next piece has to report its position again.

    def compare(self, timestamp: bytes) -> Order:
        """Return whether a timestamp is before, at or after the timestamp of the cursor."""
        if len(timestamp) == len(self.wanted) and timestamp[ZONE:] == self.wanted[ZONE:]:
            return order_of(timestamp, self.wanted)
        try:
            time = nanoseconds(timestamp)
        except ValueError:
            return Order.NOT_A_TIME
        return order_of(time, self.wanted_time)

    def go_on(self, data: bytes, at: int) -> int:
        """Read the part of the current line that begins at index `at` of `data`. Return the index after the part."""
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

    # ---- the position of the reader

    def position(self, before: int = 0) -> Cursor:
        """Return the position `before` bytes back from the current one, in the current line."""
        timestamp = self.timestamp.decode()
        return Cursor(timestamp, self.count, self.column - before, self.total, self.resume.command)

    def sync(self, before: int = 0) -> None:
        """Report the position where the next piece begins: `before` bytes back from the current position."""
        self.synced = True
        self.items.append(LogPiece(b"", self.position(before)))

    def close_piece(self) -> None:
        """Combine all log bytes that were read since the last piece into one piece."""
        if self.parts:
            self.items.append(LogPiece(b"".join(self.parts), self.position()))
            self.parts = []


def order_of(found: T, wanted: T) -> Order:
    """Return where `found` stands relative to `wanted`."""
    if found == wanted:
        return Order.AT
    return Order.AFTER if found > wanted else Order.BEFORE


def nanoseconds(timestamp: bytes) -> int:
    """Return an RFC 3339 timestamp as nanoseconds since 1970.

    Raises:
        ValueError: the text is not a timestamp.
    """
    text = timestamp.decode("ascii")
    zone = "+00:00" if text.endswith("Z") else text[-6:]
    fraction = text[19 : -1 if text.endswith("Z") else -6].lstrip(".")
    seconds = int(datetime.fromisoformat(text[:19] + zone).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))


def seconds(text: bytes) -> int:
    """Return the first 19 bytes of a timestamp as seconds, without regard to the zone. 0 if they are not a time."""
    try:
        return int(datetime.fromisoformat(text.decode("ascii") + "+00:00").timestamp())
    except ValueError:
        return 0


def whole_second(timestamp: str) -> str:
    """Return a timestamp in the form of `sinceTime`: cut to whole seconds, in UTC."""
    seconds = nanoseconds(timestamp.encode()) // 1_000_000_000
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
