"""The log of a container as a kubelet serves it. Tests of the log path compare their results with this model.

The model is the kubelet's `ReadLogs` over containerd's CRI log files. Each line of such a file is a piece of a log
line, of at most 16 KiB and with its own timestamp. The kubelet joins the pieces of a log line, and only the first piece
keeps its timestamp. The kubelet compares `since` per piece and in whole seconds. A new reader gets nothing of a file
that was rotated away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone

PIECE = 16 * 1024
SECOND = 1_000_000_000
EPOCH = 1_795_000_000 * SECOND


@dataclass
class KubeletLog:
    """The log of one container.

    `zone` is the node's offset to UTC in minutes. `piece` is the maximum number of bytes of a piece of a line.
    """

    zone: int = 0
    piece: int = PIECE
    records: list[tuple[int, bytes]] = field(default_factory=list)
    current: int = 0
    """Index of the first record of the current file."""

    def write(self, payload: bytes, at: int) -> None:
        """Append payload in pieces, all with one timestamp in nanoseconds.

        Bytes after the last newline form a piece of their own.
        """
        for line in split_lines(payload):
            for start in range(0, len(line), self.piece):
                self.records.append((at, line[start : start + self.piece]))

    def rotate(self) -> None:
        """Begin a new file. `body` then returns nothing of the old file."""
        self.current = len(self.records)

    def payload(self) -> bytes:
        """Return all payload that was written."""
        return b"".join(piece for _, piece in self.records)

    def body(self, since: str = "") -> bytes:
        """Return the response to a new reader, beginning at the whole second of `since`."""
        floor = 0
        if since:
            floor = int(datetime.fromisoformat(since).timestamp()) * SECOND
        return render(self.records[self.current :], floor, self.zone)


def render(records: list[tuple[int, bytes]], floor: int, zone: int) -> bytes:
    """Join pieces to lines with timestamps, as `logWriter.write` of the kubelet does.

    `records` are the timestamps and pieces. Pieces older than `floor` (nanoseconds since 1970) are left out.
    """
    parts: list[bytes] = []
    line_start = True
    for at, piece in records:
        if at >= floor:
            parts.append(stamp(at, zone) + b" " + piece if line_start else piece)
        line_start = piece.endswith(b"\n")
    return b"".join(parts)


def stamp(at: int, zone: int = 0) -> bytes:
    """Format nanoseconds since 1970 as Go's RFC 3339 with a fixed width, in a zone given in minutes."""
    where = timezone(timedelta(minutes=zone)) if zone else UTC
    text = datetime.fromtimestamp(at // SECOND, where).strftime("%Y-%m-%dT%H:%M:%S")
    suffix = f"{'+' if zone > 0 else '-'}{abs(zone) // 60:02d}:{abs(zone) % 60:02d}" if zone else "Z"
    return f"{text}.{at % SECOND:09d}{suffix}".encode()


def split_lines(payload: bytes) -> list[bytes]:
    """Split after newlines only, unlike `splitlines`."""
    lines = payload.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
