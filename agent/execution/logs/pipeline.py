"""The pipeline of a session's log: takes markers out, applies the limits, masks secrets, and keeps the positions.

A `LogStream` lives as long as its session follows the log. Pieces of the log go in as they were read. Chunks of at most
64 KiB and markers come out, in the order of the log. Each chunk and marker carries the cursor from which the log can be
read again exactly. At this position neither the marker reader nor the masker keeps bytes back. The output depends only
on the log and on the first cursor, never on how the log was cut into pieces. The chunks of an adopting agent therefore
continue those of the dead agent.

All limits count bytes of the log, markers included, not bytes that are sent: the column in a line, and the total. Where
the stream leaves text out, or text is missing, it writes a notice. Where the stream cuts text, bytes that may begin a
secret are hidden.

A secret can begin before a marker and go on behind it, where two commands print its parts. The stream outputs the
marker at once, although the masker still keeps the beginning of the secret back. The cursor then lies before this
beginning, so `reported` in the cursor names the last marker that was output. A resumed stream drops the markers up to
there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.events import LogChunk
from agent.domain.log_cursor import Cursor
from agent.domain.observations import Marker, MarkerKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent.domain.observations import LogGap, LogPiece
    from agent.execution.logs.masking import Masker
    from agent.execution.ports import MarkerReader

# Maximum number of bytes in one chunk of the log.
CHUNK = 64 * 1024
# Maximum number of line starts to remember while bytes are kept back. If a line start is not remembered, the cursor
# names an earlier line, and a resume reads some lines twice.
MAX_ANCHORS = 64
START = Cursor()


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum number of bytes sent of one line, and of the whole log. The rest is left out, with a notice."""

    line: int = 16 << 20
    total: int = 256 << 20


@dataclass(frozen=True, slots=True)
class MarkerSeen:
    """A marker in its place between the chunks. `cursor` is the position after the marker."""

    marker: Marker
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start of a line. `at` is the number of bytes of the log before the line, without timestamps."""

    at: int
    timestamp: str
    count: int


class LogStream:
    """The pipeline of one log. `markers` makes a marker reader, `masker` belongs to this stream alone.

    `left_out_of_lines` and `left_out_of_total` count the bytes over each limit. `gaps` counts the reported gaps, by
    whether the gap is certain.
    """

    def __init__(
        self, markers: Callable[[Cursor], MarkerReader], masker: Masker, limits: Limits, start: Cursor = START
    ) -> None:
        self.markers = markers(start)
        self.masker = masker
        self.limits = limits
        self.left_out_of_lines = 0
        self.left_out_of_total = 0
        self.gaps = {True: 0, False: 0}
        self.command = start.command
        self.at = start.total  # number of bytes of the log that went to the masker or were left out
        self.column = 0
        self.unreported_bytes = 0  # number of bytes left out of the current line since the last notice
        self.reported = start.reported  # position in the log up to which all markers were output
        self.masked = 0  # number of input bytes that the masker has processed
        # One pair for each marker within or behind the text that the masker keeps back: the value of `masked` at the
        # marker, and the length of the marker in bytes.
        self.markers_in_kept: deque[tuple[int, int]] = deque()
        self.hiding_reported = False
        self.anchors = deque([Anchor(start.total - start.offset, start.timestamp, start.count)])
        self.out: list[LogChunk | MarkerSeen] = []

    @property
    def cursor(self) -> Cursor:
        """Return the position in the log up to which everything was output."""
        kept_since = self.masked - self.masker.buffered
        while self.markers_in_kept and self.markers_in_kept[0][0] <= kept_since:
            self.markers_in_kept.popleft()
        at = self.at - self.masker.buffered - sum(length for _, length in self.markers_in_kept)
        while len(self.anchors) > 1 and self.anchors[1].at <= at:
            self.anchors.popleft()
        anchor = self.anchors[0]
        reported = self.reported if self.reported > at else 0
        return Cursor(anchor.timestamp, anchor.count, at - anchor.at, at, self.command, reported)

    @property
    def ended(self) -> bool:
        """Return whether the log so far ends with the last marker."""
        return self.markers.ended

    def feed(self, piece: LogPiece) -> list[LogChunk | MarkerSeen]:
        """Take the next piece of the log. Returns the output that later pieces cannot change."""
        self.anchor(piece.end)
        if not piece.data:
            if not self.markers.buffered:
                self.column = piece.end.offset
            return []
        self.take(self.markers.feed(piece.data))
        return self.take_output()

    def gap(self, gap: LogGap) -> list[LogChunk | MarkerSeen]:
        """Report that a part of the log is missing here. The next piece must have the position after the gap."""
        self.gaps[gap.certain] += 1
        self.take(self.markers.flush())
        self.release(hide=True)
        if gap.until:
            self.anchors = deque([Anchor(self.at, gap.until, 1)])
        if self.at <= self.limits.total:
            self.notice(gap_notice(gap))
        return self.take_output()

    def finish(self) -> list[LogChunk | MarkerSeen]:
        """Return the rest of the output, at the end of the log."""
        self.take(self.markers.flush())
        self.release()
        return self.take_output()

    # ---- markers in the log

    def take(self, items: list[bytes | Marker]) -> None:
        """Process the text and the markers in `items`, which are in the order of the log."""
        for item in items:
            if isinstance(item, Marker):
                self.marker(item)
            else:
                self.text(item)

    def marker(self, marker: Marker) -> None:
        """Output a marker, after all text before the marker that is not kept back.

        Drop a marker that was already output before the resume.
        """
        length = len(marker.raw)
        self.report_truncation()
        if self.at <= self.limits.total < self.at + length:
            self.release(hide=True)
            self.report_total_limit(self.column)
        if self.masker.buffered:
            self.markers_in_kept.append((self.masked, length))
        self.advance(marker.raw)
        if self.at <= self.reported:
            return
        self.reported = self.at
        self.command = marker.command if marker.kind is MarkerKind.STARTED else 0
        self.out.append(MarkerSeen(marker, self.cursor))

    # ---------------------------------------------------------------------------------------------------------- limits

    def text(self, data: bytes) -> None:
        """Process text without markers, up to the limit of the whole log. The rest of the log is left out."""
        room = max(0, self.limits.total - self.at)
        if len(data) <= room:
            self.lines(data)
        else:
            self.lines(data[:room])
            self.leave_out(data[room:])

    def leave_out(self, data: bytes) -> None:
        """Leave out text over the total limit, with one notice.

        The cursor of the notice lies beyond the limit, so that a resume does not write the notice again.
        """
        first = self.at == self.limits.total
        if first:
            self.release(hide=True)
        column = self.column
        self.advance(data)
        self.left_out_of_total += len(data)
        if first:
            self.report_total_limit(column)

    def report_total_limit(self, column: int) -> None:
        """Write the notice that the log is cut. `column` is the number of bytes in the line before the notice."""
        self.notice(f"[log cut at {self.limits.total} bytes: the rest is left out]", column)

    def lines(self, data: bytes) -> None:
        """Process text, up to the limit of each line. The rest of a longer line is left out."""
        while data:
            if self.column + len(data) <= self.limits.line:
                self.show(data)
                return
            room = max(0, self.limits.line - self.column)
            newline = data.find(b"\n")
            length = len(data) if newline < 0 else newline
            if length <= room:
                taken = min(length + 1, len(data))
                self.report_truncation()
                self.show(data[:taken])
                data = data[taken:]
                continue
            self.show(data[:room])
            self.release(hide=True, cut=False)
            self.advance(data[room:length])
            self.unreported_bytes += length - room
            self.left_out_of_lines += length - room
            data = data[length:]

    # ---- output of the stream

    def show(self, data: bytes) -> None:
        """Mask text and output it in chunks of at most `CHUNK` bytes. Masking never makes a text longer."""
        while data:
            part = data[: CHUNK - len(self.masker.kept)]
            self.advance(part)
            self.masked += len(part)
            self.emit(self.masker.feed(part))
            data = data[len(part) :]
        if self.masker.over_budget and not self.hiding_reported:
            self.hiding_reported = True
            self.notice("[text is hidden here: the search for secrets in it took too long]")

    def release(self, *, hide: bool = False, cut: bool = True) -> None:
        """Output the bytes that the masker keeps back, and with `cut` the notice about a cut line.

        With `hide`, a mask replaces these bytes, because they may begin a secret.
        """
        self.emit(self.masker.flush(hide=hide))
        if cut:
            self.report_truncation()

    def report_truncation(self) -> None:
        """Write the notice about the bytes of this line that were left out since the last notice."""
        if self.unreported_bytes:
            self.emit(b"[line cut: %d bytes left out]" % self.unreported_bytes)
            self.unreported_bytes = 0

    def notice(self, sentence: str, column: int | None = None) -> None:
        """Output a sentence of the agent on a line of its own.

        `column` is the number of bytes that the current line has already. None: the number that this stream has
        counted.
        """
        column = self.column if column is None else column
        self.emit((b"\n" if column else b"") + sentence.encode() + b"\n")

    def emit(self, data: bytes) -> None:
        """Output bytes as a chunk that carries the position after the bytes."""
        if data:
            self.out.append(LogChunk(data, self.cursor))

    def take_output(self) -> list[LogChunk | MarkerSeen]:
        """Return the output since the last call of `take_output`, and clear it."""
        out, self.out = self.out, []
        return out

    # ---- positions in the log

    def advance(self, raw: bytes) -> None:
        """Move the current position in the log behind the bytes `raw`."""
        self.at += len(raw)
        newline = raw.rfind(b"\n")
        self.column = self.column + len(raw) if newline < 0 else len(raw) - newline - 1

    def anchor(self, end: Cursor) -> None:
        """Remember the start of the line in which a piece ends."""
        anchor = Anchor(end.total - end.offset, end.timestamp, end.count)
        if anchor == self.anchors[-1]:
            return
        if len(self.anchors) >= MAX_ANCHORS:
            self.anchors.pop()
        self.anchors.append(anchor)


def gap_notice(gap: LogGap) -> str:
    """Return the notice about a gap. It states no more than the agent knows."""
    span = f"lines between {gap.since} and {gap.until or 'the end'}"
    if gap.certain:
        return f"[gap in the log: {span} are missing: the node deleted them before they could be read]"
    why = "the node began a new file there before the old one was read to its end"
    return f"[gap in the log: {span} may be missing: {why}]"
