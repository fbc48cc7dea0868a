"""The way of an environment's log through a session: markers out, limits kept, secrets masked, positions known.

A `LogStream` lives as long as its session follows the log. Pieces of payload go in as they were read, chunks of at
most 64 KiB and markers come out in order, each with the cursor from which the log can be read again exactly: a position
where neither the marker reader nor the masker keeps anything back. What comes out depends only on the log and on the
cursor it began with, never on how it was cut on the way, so that an adopter's chunks continue the dead agent's.

All limits therefore count what stands in the log (markers included), not what is sent: the column in a line, and the
total. Where text is left out or missing, the stream says so itself; where the stream cuts it, what may be the beginning
of a secret is hidden. A marker is a border: the masker lets out what it holds, and no secret is sought across it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.domain.events import LogChunk
from agent.domain.log_cursor import Cursor
from agent.domain.observations import Marker, MarkerKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from agent.domain.observations import LogGap, LogPiece
    from agent.execution.masking import Masker
    from agent.execution.ports import MarkerReader

CHUNK = 64 * 1024
# Smaller than any marker (its nonce alone is longer), so that a slice completes one at most.
SLICE = 16
# Anchors that wait for held bytes; between them a cursor reaches further back, which costs a resume some repetition.
MOST_ANCHORS = 64
START = Cursor()


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of one line, and of the whole log, that are sent; the rest is left out with a notice."""

    line: int = 16 << 20
    total: int = 256 << 20


@dataclass(frozen=True, slots=True)
class MarkerSeen:
    """A marker in its place between the chunks; `cursor` is the position after it."""

    marker: Marker
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start of a line; `at` is where it stands in the payload."""

    at: int
    timestamp: str
    count: int


class LogStream:
    """The pipeline of one log. `markers` makes a fresh reader, `masker` belongs to this stream alone.

    `left_out_of_lines` and `left_out_of_total` count the bytes over each limit, `gaps` what was said to be missing,
    by whether that is certain.
    """

    def __init__(
        self, markers: Callable[[], MarkerReader], masker: Masker, limits: Limits, start: Cursor = START
    ) -> None:
        self.fresh_markers = markers
        self.markers = markers()
        self.masker = masker
        self.limits = limits
        self.left_out_of_lines = 0
        self.left_out_of_total = 0
        self.gaps = {True: 0, False: 0}
        self.command = start.command
        self.at = start.total  # up to where text went to the masker, or was left out
        self.column = 0
        self.unsaid = 0  # bytes of the current line that were left out since this was last said
        self.tail = b""  # what the marker reader holds
        self.anchors = deque([Anchor(start.total - start.offset, start.timestamp, start.count)])
        self.out: list[LogChunk | MarkerSeen] = []

    @property
    def cursor(self) -> Cursor:
        """The position up to which everything has come out."""
        at = self.at - self.masker.held
        while len(self.anchors) > 1 and self.anchors[1].at <= at:
            self.anchors.popleft()
        anchor = self.anchors[0]
        return Cursor(anchor.timestamp, anchor.count, at - anchor.at, at, self.command)

    def feed(self, piece: LogPiece) -> list[LogChunk | MarkerSeen]:
        """Take the next piece of payload and return what is decided of it."""
        self.anchor(piece.end)
        if not piece.data:
            if not self.tail:
                self.column = piece.end.offset
            return []
        raw = self.tail + piece.data if self.tail else piece.data
        items = self.markers.feed(piece.data)
        texts = [item for item in items if not isinstance(item, Marker)]
        if len(texts) == len(items):
            for text in texts:
                self.text(text)
        else:
            self.slices(raw)
        held = self.markers.buffered
        self.tail = raw[len(raw) - held :] if held else b""
        return self.taken()

    def gap(self, gap: LogGap) -> list[LogChunk | MarkerSeen]:
        """Say that a part of the log is missing here; the next piece must say where it goes on."""
        self.gaps[gap.certain] += 1
        self.end_markers()
        self.release(hide=True)
        if gap.until:
            self.anchors = deque([Anchor(self.at, gap.until, 1)])
        if self.at <= self.limits.total:
            self.notice(sentence(gap))
        return self.taken()

    def finish(self) -> list[LogChunk | MarkerSeen]:
        """Return what is still held, at the end of the log."""
        self.end_markers()
        self.release()
        return self.taken()

    # --------------------------------------------------------------------------------------------------------- markers

    def slices(self, raw: bytes) -> None:
        """Take payload that holds markers, so that the position of each becomes known.

        A reader's state is what it holds: a fresh one that is fed that again goes on alike.
        """
        self.markers = self.fresh_markers()
        done = 0
        for start in range(0, len(raw), SLICE):
            piece = raw[start : start + SLICE]
            items = self.markers.feed(piece)
            for index, item in enumerate(items):
                if isinstance(item, Marker):
                    after = sum(len(text) for text in items[index + 1 :] if not isinstance(text, Marker))
                    end = start + len(piece) - self.markers.buffered - after
                    self.marker(item, raw[done:end])
                    done = end
                else:
                    self.text(item)
                    done += len(item)

    def marker(self, marker: Marker, raw: bytes) -> None:
        """Let a marker out behind everything before it."""
        self.release()
        if self.at <= self.limits.total < self.at + len(raw):
            self.say_over(self.column)
        self.advance(raw)
        self.command = marker.command if marker.kind is MarkerKind.STARTED else 0
        self.out.append(MarkerSeen(marker, self.cursor))

    def end_markers(self) -> None:
        """Take what only looked like the beginning of a marker as text."""
        self.text(self.markers.flush())
        self.markers, self.tail = self.fresh_markers(), b""

    # ---------------------------------------------------------------------------------------------------------- limits

    def text(self, data: bytes) -> None:
        """Take text that no marker is in, up to the limit of the whole log."""
        room = max(0, self.limits.total - self.at)
        if len(data) <= room:
            self.lines(data)
        else:
            self.lines(data[:room])
            self.over(data[room:])

    def over(self, data: bytes) -> None:
        """Leave out what is over the total; the notice's cursor is beyond it, so that it is said once."""
        first = self.at == self.limits.total
        if first:
            self.release(hide=True)
        column = self.column
        self.advance(data)
        self.left_out_of_total += len(data)
        if first:
            self.say_over(column)

    def say_over(self, column: int) -> None:
        """Say that the whole log is cut here."""
        self.notice(f"[log cut at {self.limits.total} bytes: the rest is left out]", column)

    def lines(self, data: bytes) -> None:
        """Take text, up to the limit of each line."""
        while data:
            if self.column + len(data) <= self.limits.line:
                self.show(data)
                return
            room = max(0, self.limits.line - self.column)
            newline = data.find(b"\n")
            length = len(data) if newline < 0 else newline
            if length <= room:
                taken = min(length + 1, len(data))
                self.release_cut()
                self.show(data[:taken])
                data = data[taken:]
                continue
            self.show(data[:room])
            self.release(hide=True, cut=False)
            self.advance(data[room:length])
            self.unsaid += length - room
            self.left_out_of_lines += length - room
            data = data[length:]

    # ------------------------------------------------------------------------------------------------------------- out

    def show(self, data: bytes) -> None:
        """Mask and let out; an output is never longer than what went in and what was held."""
        while data:
            part = data[: CHUNK - self.masker.held]
            self.advance(part)
            self.emit(self.masker.feed(part))
            data = data[len(part) :]

    def release(self, *, hide: bool = False, cut: bool = True) -> None:
        """Let out what the masker holds and, with `cut`, how much of the line was left out."""
        self.emit(self.masker.flush(hide=hide))
        if cut:
            self.release_cut()

    def release_cut(self) -> None:
        """Say how much of the line was left out since this was last said."""
        if self.unsaid:
            self.emit(b"[line cut: %d bytes left out]" % self.unsaid)
            self.unsaid = 0

    def notice(self, sentence: str, column: int | None = None) -> None:
        """Let a line of our own out, on a line of its own."""
        column = self.column if column is None else column
        self.emit((b"\n" if column else b"") + sentence.encode() + b"\n")

    def emit(self, data: bytes) -> None:
        """Let bytes out with the position after them."""
        if data:
            self.out.append(LogChunk(data, self.cursor))

    def taken(self) -> list[LogChunk | MarkerSeen]:
        """Return what came out in this call."""
        out, self.out = self.out, []
        return out

    # ------------------------------------------------------------------------------------------------------- positions

    def advance(self, raw: bytes) -> None:
        """Move the position over payload."""
        self.at += len(raw)
        newline = raw.rfind(b"\n")
        self.column = self.column + len(raw) if newline < 0 else len(raw) - newline - 1

    def anchor(self, end: Cursor) -> None:
        """Remember the start of the line that a piece ends in."""
        anchor = Anchor(end.total - end.offset, end.timestamp, end.count)
        if anchor == self.anchors[-1]:
            return
        if len(self.anchors) >= MOST_ANCHORS:
            self.anchors.pop()
        self.anchors.append(anchor)


def sentence(gap: LogGap) -> str:
    """Say a gap, and no more of it than is known."""
    span = f"lines between {gap.since} and {gap.until or 'the end'}"
    if gap.certain:
        return f"[gap in the log: {span} are missing: the node threw them away before they could be read]"
    return f"[gap in the log: {span} may be missing: the node began a new file there that was not read on from the old]"


def joined(chunks: Iterable[LogChunk]) -> Iterator[LogChunk]:
    """Join neighbours to chunks of at most `CHUNK` bytes; each keeps the last cursor of its parts."""
    parts: list[bytes] = []
    size = 0
    last: LogChunk | None = None
    for chunk in chunks:
        if last and (size + len(chunk.data) > CHUNK or chunk.source is not last.source):
            yield LogChunk(b"".join(parts), last.cursor, last.source)
            parts, size = [], 0
        parts.append(chunk.data)
        size += len(chunk.data)
        last = chunk
    if last:
        yield LogChunk(b"".join(parts), last.cursor, last.source)
