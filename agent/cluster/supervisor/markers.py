"""The supervisor's announcements, taken out of the log they travel in.

The supervisor prints a marker into the same pipe as the commands' output at the start and the end of each command, and
one when everything has ended: so an announcement stands exactly where it belongs between the bytes of the log. A marker
carries the session's random nonce, so no output of a user is taken for one, and ends with a newline of its own that
goes with it, so output without a final newline stays as it was. A reader lives as long as one log is read; it keeps
back only what may still become a marker, and never more than one marker's length.

On the wire: 0x1e `sealci:NONCE:s:COMMAND` newline, `...:f:COMMAND:CODE`, `...:l:0:CODE`. Markers decide nothing: the
verdict comes from the container's status and its termination message.
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
    """Splits a log into the user's bytes and markers; the same for every way in which the log is cut into pieces.

    Args:
        nonce: the session's, 8 to 64 letters and digits.
    """

    def __init__(self, nonce: str) -> None:
        if not NONCE.fullmatch(nonce):
            raise ValueError("a nonce is 8 to 64 letters and digits")
        self.prefix = LEAD + b"sealci:" + nonce.encode() + b":"
        self.tail = b""

    @property
    def buffered(self) -> int:
        """How many bytes at the end of what was fed are kept back: they may begin a marker."""
        return len(self.tail)

    def feed(self, data: bytes) -> list[bytes | Marker]:
        """Return text (never empty) and markers in order, as far as they are certain."""
        if self.tail:
            data, self.tail = self.tail + data, b""
        items: list[bytes | Marker] = []
        begin = search = 0
        while (found := data.find(self.prefix, search)) >= 0:
            body = found + len(self.prefix)
            if match := BODY.match(data, body):
                if found > begin:
                    items.append(data[begin:found])
                items.append(marker(match))
                begin = search = match.end()
            elif self.may_end_later(data, body):
                break
            else:
                search = body
        keep = found if found >= 0 else self.beginning(data, search)
        if keep > begin:
            items.append(data[begin:keep] if begin or keep < len(data) else data)
        self.tail = data[keep:]
        return items

    def flush(self) -> bytes:
        """Return what was kept back, at the end of the log."""
        rest, self.tail = self.tail, b""
        return rest

    def beginning(self, data: bytes, since: int) -> int:
        """Return where a marker begins whose prefix is not whole yet; the end of the data if there is none."""
        at = data.rfind(LEAD, max(since, len(data) - len(self.prefix) + 1))
        return at if at >= 0 and self.prefix.startswith(data[at:]) else len(data)

    def may_end_later(self, data: bytes, body: int) -> bool:
        """Whether what follows a whole prefix is the beginning of a body, cut off by the end of the data."""
        return UNFINISHED.fullmatch(data, body) is not None


def marker(match: re.Match[bytes]) -> Marker:
    """Return the marker that a body announces."""
    started, command, kind, finished, code = match.groups()
    if started:
        return Marker(MarkerKind.STARTED, int(command))
    return Marker(MarkerKind(kind.decode()), int(finished), int(code))
