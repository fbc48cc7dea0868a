"""Cut the log of an action into lines that a terminal can show.

A `LineSplitter` lives as long as its action. The scheduler keeps the exact bytes of the log, so this module need not
keep every byte. It replaces bytes that are not UTF-8, and keeps only the last state of a progress bar.
"""

from __future__ import annotations

import codecs

# Number of characters after which an unfinished line is shown, so that a log without line ends uses little memory.
MAX_UNFINISHED = 64 << 10


class LineSplitter:
    """Cuts the log of one action into lines. Its view or report owns it."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.unfinished = ""

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes of the log and return the lines that they complete."""
        text = self.unfinished + self.decoder.decode(data)
        *lines, self.unfinished = text.split("\n")
        if len(self.unfinished) > MAX_UNFINISHED:
            lines.append(self.unfinished)
            self.unfinished = ""
        return [last_state(line) for line in lines]

    def flush(self) -> list[str]:
        """Return the unfinished line, or an empty list if there is none."""
        rest = self.unfinished + self.decoder.decode(b"", final=True)
        self.decoder.reset()
        self.unfinished = ""
        return [last_state(rest)] if rest else []


def last_state(line: str) -> str:
    """Return what a terminal shows of a line in the end: the text after the last carriage return."""
    return line.rstrip("\r").rpartition("\r")[2]
