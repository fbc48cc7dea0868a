"""The log of an action cut into lines that a terminal can show.

One `Lines` lives as long as its action is watched. The bytes themselves are kept elsewhere, so that what is no text is
replaced here, and of a progress bar that rewrites its line with carriage returns the last state is shown.
"""

from __future__ import annotations

import codecs

MAX_PARTIAL = 64 << 10


class Lines:
    """Cuts the log of one action into lines to show."""

    def __init__(self) -> None:
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.partial = ""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that are whole now; an endless one is cut."""
        text = self.partial + self.decoder.decode(data)
        *whole, self.partial = text.split("\n")
        if len(self.partial) > MAX_PARTIAL:
            whole.append(self.partial)
            self.partial = ""
        return [visible(line) for line in whole]

    def flush(self) -> list[str]:
        """Return what is left of a last line without an end."""
        rest = self.partial + self.decoder.decode(b"", final=True)
        self.decoder.reset()
        self.partial = ""
        return [visible(rest)] if rest else []


def visible(line: str) -> str:
    """Return what a terminal would show at last of a line with carriage returns."""
    return line.rstrip("\r").rpartition("\r")[2]
