"""Read the supervisor's markers out of the log of the commands.

The supervisor prints a marker into the same pipe as the commands' output, at the start and the end of each command and
at the end of the log. So a marker's position between the bytes of the log is exact. Each marker carries the session's
random nonce, so output is not mistaken for a marker by accident. The newline after a marker belongs to the marker, so
output without a final newline stays as it was.

A marker is the byte 0x1e, then `sealci:NONCE:s:COMMAND` (start), `sealci:NONCE:f:COMMAND:CODE` (end of a command) or
`sealci:NONCE:l:0:CODE` (last marker), then a newline. Before the first command, container `helper` writes
`sealci:NONCE:r:SERVICE` when the ports of a service accept. Markers do not decide the verdict. The container's status
and its termination message decide the verdict.

A process of the commands can find out the nonce, and then print markers of its own. The reader therefore accepts a
marker only at a place where it can stand: a ready service before the first command, the start of a later command of the
action, the end of the command that runs, the last marker at the end of the log. Any other marker counts as output and
is shown. So a log holds at most two markers per command, and no marker can hide output that follows it.
"""

from __future__ import annotations

import re

from agent.domain.log_cursor import Cursor
from agent.domain.observations import Marker, MarkerKind

LEAD = b"\x1e"
NONCE = re.compile(r"[0-9A-Za-z]{8,64}")
BODY = re.compile(rb"(?:([rs]):(\d{1,9})|([fl]):(\d{1,9}):(\d{1,3}))\n")
START = Cursor()
UNFINISHED = re.compile(rb"[rsfl:0-9]{0,15}")

__all__ = ["LEAD", "NONCE", "Marker", "MarkerKind", "MarkerReader"]


class MarkerReader:
    """Splits a log into user output and markers. The result does not depend on how the log is cut into pieces.

    A reader lives as long as one reading of the log. It buffers at most the length of one marker.

    Args:
        nonce: the session's nonce, 8 to 64 letters and digits.
        command_count: how many commands the action has.
        start: the position in the log where the reading begins.
        service_count: how many services the action has.
    """

    def __init__(self, nonce: str, command_count: int, start: Cursor = START, service_count: int = 0) -> None:
        if not NONCE.fullmatch(nonce):
            raise ValueError("a nonce is 8 to 64 letters and digits")
        self.prefix = LEAD + b"sealci:" + nonce.encode() + b":"
        self.command_count = command_count
        self.service_count = service_count
        # Number of the last started command. If the markers right after the position `start` were already
        # reported, the number is unknown, and 0 stands for it.
        self.last_started = 0 if start.reported else start.command
        self.running = self.last_started > 0
        self.tail = b""
        self.ended = False

    @property
    def buffered(self) -> int:
        """Number of bytes at the end of the input that are not yet returned, because they may begin a marker."""
        return len(self.tail)

    def feed(self, data: bytes) -> list[bytes | Marker]:
        """Return user output (never empty) and markers in order, without the bytes that may begin a marker.

        Afterwards `ended` is True if the input ends with the last marker. `flush` returns this marker.
        """
        if not data:
            return []
        if self.tail:
            data, self.tail = self.tail + data, b""
        self.ended = False
        if LEAD not in data:
            # This search of one byte is several times as fast as the search of a whole prefix.
            return [data]
        items: list[bytes | Marker] = []
        begin = search = 0
        while (found := data.find(self.prefix, search)) >= 0:
            body = found + len(self.prefix)
            if match := BODY.match(data, body):
                if match[3] == b"l" and match.end() == len(data):
                    self.ended = True
                    break
                search = match.end()
                if marker := self.accept(match, data[found:search]):
                    if found > begin:
                        items.append(data[begin:found])
                    items.append(marker)
                    begin = search
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

    def flush(self) -> list[bytes | Marker]:
        """Return what is buffered at the end of the log: the last marker, or the beginning of a marker as output."""
        rest, self.tail = self.tail, b""
        if self.ended:
            self.ended = False
            return [Marker(MarkerKind.LAST, 0, int(rest[:-1].rpartition(b":")[2]), rest)]
        return [rest] if rest else []

    def accept(self, match: re.Match[bytes], raw: bytes) -> Marker | None:
        """Return the marker that `match` (of `BODY`) describes, and record the start or end of its command.

        Return None if no such marker can stand at this place of the log.
        """
        started, command, kind, finished, code = match.groups()
        if started:
            number = int(command)
            if started == b"r":
                before_commands = not self.last_started and 0 < number <= self.service_count
                return Marker(MarkerKind.READY, number, raw=raw) if before_commands else None
            # The marker of an earlier command may be missing, because of a gap in the log, or because the commands
            # redirect output.
            if not self.last_started < number <= self.command_count:
                return None
            self.last_started, self.running = number, True
            return Marker(MarkerKind.STARTED, number, raw=raw)
        number = int(finished)
        runs = number == self.last_started and self.running
        if kind == b"l" or not (runs or self.last_started < number <= self.command_count):
            return None
        self.last_started, self.running = number, False
        return Marker(MarkerKind.FINISHED, number, int(code), raw)

    def find_partial_prefix(self, data: bytes, since: int) -> int:
        """Return where an incomplete marker prefix begins at the end of the data; the length of the data if none."""
        at = data.rfind(LEAD, max(since, len(data) - len(self.prefix) + 1))
        return at if at >= 0 and self.prefix.startswith(data[at:]) else len(data)

    def is_cut_off(self, data: bytes, body: int) -> bool:
        """Whether the bytes after a complete prefix begin a marker body that the end of the data cuts off."""
        return UNFINISHED.fullmatch(data, body) is not None
