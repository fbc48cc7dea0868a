"""Read the supervisor's markers out of the log of the commands.

The supervisor prints a marker into the same pipe as the commands' output, at the start and the end of each command and
at the end of the log. So a marker's position between the bytes of the log is exact. Each marker carries the session's
random nonce, so user output cannot be mistaken for a marker. The newline after a marker belongs to the marker, so
output without a final newline stays as it was.

On the wire: 0x1e `sealci:NONCE:s:COMMAND` newline, `...:f:COMMAND:CODE`, `...:l:0:CODE`. Markers do not decide the
verdict. The container's status and its termination message decide the verdict.
"""

from __future__ import annotations

import re

from agent.domain.observations import Marker, MarkerKind

LEAD = b"\x1e"
NONCE = re.compile(r"[0-9A-Za-z]{8,64}")
BODY = re.compile(rb"(?:(s):(\d{1,9})|([fl]):(\d{1,9}):(\d{1,3}))\n")
UNFINISHED = re.compile(rb"[sfl:0-9]{0,15}")

__all__ = ["LEAD", "NONCE", "Marker", "MarkerKind", "MarkerReader"]


class MarkerReader:
    """Splits a log into user output and markers. The result does not depend on how the log is cut into pieces.

    A reader lives as long as one reading of the log. It buffers at most the length of one marker.

    Args:
        nonce: the session's nonce, 8 to 64 letters and digits.
    """

    def __init__(self, nonce: str) -> None:
        if not NONCE.fullmatch(nonce):
            raise ValueError("a nonce is 8 to 64 letters and digits")
        self.prefix = LEAD + b"sealci:" + nonce.encode() + b":"
        self.tail = b""

    @property
    def buffered(self) -> int:
        """Number of bytes at the end of the input that are not yet returned, because they may begin a marker."""
        return len(self.tail)

    def feed(self, data: bytes) -> list[bytes | Marker]:
        """Return user output (never empty) and markers in order, without the bytes that may begin a marker."""
        if self.tail:
            data, self.tail = self.tail + data, b""
        items: list[bytes | Marker] = []
        begin = search = 0
        while (found := data.find(self.prefix, search)) >= 0:
            body = found + len(self.prefix)
            if match := BODY.match(data, body):
                if found > begin:
                    items.append(data[begin:found])
                items.append(parse_marker(match))
                begin = search = match.end()
            elif self.is_cut_off(data, body):
                break
            else:
                search = body
        keep = found if found >= 0 else self.find_partial_prefix(data, search)
        if keep > begin:
            # A slice of the whole would copy the data. Most pieces of a log hold no marker.
            items.append(data[begin:keep] if begin or keep < len(data) else data)
        self.tail = data[keep:]
        return items

    def flush(self) -> bytes:
        """Return the buffered bytes at the end of the log."""
        rest, self.tail = self.tail, b""
        return rest

    def find_partial_prefix(self, data: bytes, since: int) -> int:
        """Return where an incomplete marker prefix begins at the end of the data; the length of the data if none."""
        at = data.rfind(LEAD, max(since, len(data) - len(self.prefix) + 1))
        return at if at >= 0 and self.prefix.startswith(data[at:]) else len(data)

    def is_cut_off(self, data: bytes, body: int) -> bool:
        """Whether the bytes after a complete prefix begin a marker body that the end of the data cuts off."""
        return UNFINISHED.fullmatch(data, body) is not None


def parse_marker(match: re.Match[bytes]) -> Marker:
    """Return the marker of a match of `BODY`."""
    started, command, kind, finished, code = match.groups()
    if started:
        return Marker(MarkerKind.STARTED, int(command))
    return Marker(MarkerKind(kind.decode()), int(finished), int(code))
