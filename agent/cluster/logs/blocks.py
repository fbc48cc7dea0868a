"""Read the output of the errand `log` in container `helper`: parts of the log file, each after a line of JSON.

Performs no I/O. A `BlockReader` lives as long as one exec.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent.domain.errors import ClusterError

# Maximum number of bytes in a line of JSON.
MAX_LINE = 2000
# Maximum number of bytes in a block: the raw bytes that follow a line of JSON.
MAX_BLOCK = 1 << 20
# Maximum number of bytes of log that the reader returns in one piece.
PART = 256 * 1024


@dataclass(frozen=True, slots=True)
class Reached:
    """The errand has sent the file to its end at byte `size`.

    If `ended`, the log has ended too, and `dropped` is the number of bytes by which the commands exceeded the log's
    limit.
    """

    size: int
    ended: bool = False
    dropped: int = 0


class BlockReader:
    """Reads the output of one exec. `position` is the position in the log after the last returned byte."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.line = b""
        self.left = 0
        self.parts: list[memoryview] = []
        self.size = 0

    def feed(self, data: memoryview) -> list[bytes | Reached]:
        """Process the next bytes of the output. Return parts of the log, and `Reached` for a report of the end.

        Raises:
            ClusterError: the errand failed, or its output is malformed.
        """
        items: list[bytes | Reached] = []
        while data:
            if not self.left:
                data = self.read_line(data, items)
                continue
            part = data[: min(self.left, PART - self.size)]
            data = data[len(part) :]
            self.left -= len(part)
            self.parts.append(part)
            self.size += len(part)
            if self.size == PART or not self.left:
                items.append(self.take())
        return items

    def take(self) -> bytes:
        """Return the buffered bytes as one part, and empty the buffer."""
        taken = b"".join(self.parts)
        self.position += self.size
        self.parts, self.size = [], 0
        return taken

    def read_line(self, data: memoryview, items: list[bytes | Reached]) -> memoryview:
        """Read a line of JSON from the start of the data. Return the data behind the line."""
        head = bytes(data[:MAX_LINE])
        end = head.find(b"\n")
        self.line += head if end < 0 else head[:end]
        if len(self.line) > MAX_LINE:
            raise malformed(self.line)
        if end < 0:
            return data[len(head) :]
        line, self.line = self.line, b""
        self.on_report(line, items)
        return data[end + 1 :]

    def on_report(self, line: bytes, items: list[bytes | Reached]) -> None:
        """Handle one line of JSON.

        Raises:
            ClusterError: the line is malformed or reports an error.
        """
        try:
            report = json.loads(line)
            if "bytes" in report:
                self.left = int(report["bytes"])
                if int(report["at"]) != self.position or not 0 <= self.left <= MAX_BLOCK:
                    raise malformed(line)
            elif "end" in report:
                end = report["end"]
                if int(end["size"]) != self.position:
                    raise malformed(line)
                items.append(Reached(self.position, ended=True, dropped=int(end["dropped"])))
            elif "now" in report:
                items.append(Reached(int(report["now"])))
            else:
                why = str(report["error"])[:500]
                raise ClusterError(f"the log cannot be read from its file: {why}", retryable=True)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise malformed(line) from error


def malformed(line: bytes) -> ClusterError:
    return ClusterError(f"the helper's report about the log is malformed: {line[:100]!r}", retryable=True)
