"""The steps that process a session's log: remove markers, limit lines, mask secrets, and record the positions.

A `LogStream` lives as long as its session follows the log. Pieces of the log go in as they were read. Chunks of at most
256 KiB and markers come out, in the order of the log. Each chunk and marker carries the cursor from which the log can
be read again exactly. At this position neither the marker reader nor the masker keeps bytes back. The output depends
only on the log and on the first cursor, never on how the log was cut into pieces. The chunks of an adopting agent
therefore continue those of the dead agent.

The limit of a line counts bytes of text, not bytes that are sent. Where the stream leaves text out, or text is missing,
the stream writes a notice. Where the stream cuts text, it hides bytes before the cut that may begin a secret.

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
CHUNK = 256 * 1024
START = Cursor()


@dataclass(frozen=True, slots=True)
class MarkerSeen:
    """A marker, in the order of the log between the chunks of text. `cursor` is the position after the marker."""

    marker: Marker
    cursor: Cursor


class LogStream:
    """Processes one log. `markers` creates a marker reader. No other stream may use the same `masker`.

    `max_line` is the maximum number of bytes of a line that are sent. `left_out_of_lines` counts the bytes over this
    limit, and `left_out_of_total` the bytes that the pod did not store. `gaps` counts the reported gaps, and `missing`
    their bytes.
    """

    def __init__(
        self, markers: Callable[[Cursor], MarkerReader], masker: Masker, max_line: int, start: Cursor = START
    ) -> None:
        self.markers = markers(start)
        self.masker = masker
        self.max_line = max_line
        self.left_out_of_lines = 0
        self.left_out_of_total = 0
        self.gaps = 0
        self.missing = 0
        self.command = start.command
        self.at = start.offset  # number of bytes of the log that went to the masker or were left out
        self.reported = start.reported  # position in the log up to which all markers were output
        # Number of bytes of text since the start of the line: at the end of the input, at the start of the text that
        # the masker keeps, and at the position of `cursor`.
        self.column = self.kept_column = self.cursor_column = start.column
        self.unreported_bytes = 0  # number of bytes left out of the current line since the last notice
        self.masked = 0  # number of input bytes that the masker has processed
        # One pair for each marker within or behind the text that the masker keeps back: the value of `masked` at the
        # marker, and the length of the marker in bytes.
        self.markers_in_kept: deque[tuple[int, int]] = deque()
        self.hiding_reported = False
        self.out: list[LogChunk | MarkerSeen] = []

    @property
    def cursor(self) -> Cursor:
        """Return the position in the log up to which everything was output."""
        kept = self.masker.buffered
        while self.markers_in_kept and self.markers_in_kept[0][0] <= self.masked - kept:
            self.markers_in_kept.popleft()
        at = self.at - kept - sum(length for _, length in self.markers_in_kept)
        return Cursor(at, self.command, self.reported if self.reported > at else 0, self.cursor_column)

    def feed(self, piece: LogPiece) -> list[LogChunk | MarkerSeen]:
        """Take the next piece of the log. Returns the output that later pieces cannot change."""
        self.take(self.markers.feed(piece.data))
        return self.take_output()

    def gap(self, gap: LogGap) -> list[LogChunk | MarkerSeen]:
        """Report that the bytes of the log that `gap` describes are missing."""
        self.gaps += 1
        self.missing += gap.size
        self.take(self.markers.flush())
        self.release(hide=True)
        column = self.column
        self.at = gap.offset + gap.size
        self.move_to(0)
        self.notice(f"[gap in the log: {gap.size} bytes are missing: the node no longer has them]", column)
        return self.take_output()

    def finish(self, dropped: int = 0) -> list[LogChunk | MarkerSeen]:
        """Return the rest of the output, at the end of the log.

        `dropped` is the number of bytes that the pod did not store, because they were over the limit of the log.
        """
        self.take(self.markers.flush())
        self.release(hide=dropped > 0)
        if dropped:
            self.left_out_of_total = dropped
            self.notice(f"[log cut at {self.at} bytes: {dropped} bytes are left out]", self.column)
        return self.take_output()

    # ---- markers in the log

    def take(self, items: list[bytes | Marker]) -> None:
        """Process the text and the markers in `items`, which are in the order of the log."""
        for item in items:
            if isinstance(item, Marker):
                self.marker(item)
            else:
                self.lines(item)

    def marker(self, marker: Marker) -> None:
        """Output a marker, after all text before the marker that is not kept back.

        Drop a marker that was output before this stream was resumed.
        """
        length = len(marker.raw)
        self.report_truncation()
        if self.column > self.max_line:
            # The output of the next command must not be left out with the rest of a line of this command.
            self.move_to(0)
        if self.masker.buffered:
            self.markers_in_kept.append((self.masked, length))
        self.at += length
        if self.at <= self.reported:
            return
        self.reported = self.at
        self.command = marker.command if marker.kind is MarkerKind.STARTED else 0
        self.out.append(MarkerSeen(marker, self.cursor))

    # ---- the limit of a line

    def lines(self, data: bytes) -> None:
        """Process text. Of each line, the bytes over the limit of a line are left out."""
        while data:
            if self.column + len(data) <= self.max_line:
                self.show(data)
                return
            room = max(0, self.max_line - self.column)
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
            self.at += length - room
            self.move_to(self.column + length - room)
            self.unreported_bytes += length - room
            self.left_out_of_lines += length - room
            data = data[length:]

    # ---- output of the stream

    def show(self, data: bytes) -> None:
        """Mask text and output it in chunks of at most `CHUNK` bytes. Masking never makes a text longer."""
        while data:
            part = data[: CHUNK - len(self.masker.kept)]
            kept = self.masker.kept
            shown = self.masker.feed(part)
            self.at += len(part)
            self.masked += len(part)
            self.column = column_after(self.column, part)
            self.settle(kept, part)
            self.emit(shown)
            data = data[len(part) :]
        if self.masker.over_budget and not self.hiding_reported:
            self.hiding_reported = True
            self.notice("[text is hidden here: the search for secrets in it took too long]", self.column)

    def settle(self, kept: bytes, part: bytes) -> None:
        """Compute the columns after the masker has processed `part`. `kept` is what the masker kept back before."""
        if not self.masker.buffered:
            self.move_to(self.column)
            return
        text = kept + part
        end = len(text) - self.masker.buffered
        # If `end` is negative, the masker still works on a run whose beginning it has dropped. The cursor then stays
        # at this beginning.
        if end >= 0:
            self.cursor_column = column_after(self.kept_column, text[:end])
        self.kept_column = column_after(self.kept_column, text[: len(text) - len(self.masker.kept)])

    def move_to(self, column: int) -> None:
        """Set all columns to `column`. Called only while the masker keeps nothing back."""
        self.column = self.kept_column = self.cursor_column = column

    def release(self, *, hide: bool = False, cut: bool = True) -> None:
        """Output the bytes that the masker keeps back and, if `cut` is set, the notice about a cut line."""
        shown = self.masker.flush(hide=hide)
        self.move_to(self.column)
        self.emit(shown)
        if cut:
            self.report_truncation()

    def report_truncation(self) -> None:
        """Write the notice about the bytes of this line that were left out since the last notice."""
        if self.unreported_bytes:
            self.emit(b"[line cut: %d bytes left out]" % self.unreported_bytes)
            self.unreported_bytes = 0

    def notice(self, sentence: str, column: int) -> None:
        """Output a sentence of the agent on a line of its own. `column` 0: the output is now at the start of a line."""
        self.emit((b"\n" if column else b"") + sentence.encode() + b"\n")

    def emit(self, data: bytes) -> None:
        """Output bytes as a chunk that carries the position after the bytes."""
        if data:
            self.out.append(LogChunk(data, self.cursor))

    def take_output(self) -> list[LogChunk | MarkerSeen]:
        """Return the output since the last call of `take_output`, and clear it."""
        out, self.out = self.out, []
        return out


def column_after(column: int, text: bytes) -> int:
    """Return the column at the end of a text that begins at `column`."""
    newline = text.rfind(b"\n")
    return column + len(text) if newline < 0 else len(text) - newline - 1
