"""The position in a pod's log up to which the agent has read.

A cursor lives as long as a session. The scheduler stores the cursor as opaque bytes and sends these bytes back in a
resume point.
"""

from __future__ import annotations

from dataclasses import dataclass

VERSION = "2"
# The first bytes of the cursors of older agent releases, in which container `helper` kept no log file.
OLDER = b"1|"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A byte position in a pod's log. An agent can continue to read there without a lost or repeated byte.

    `offset` is the number of bytes of the log before the position, markers included. `command` is the number of the
    command that runs at the position, 0 between two commands. `column` is the number of bytes of text between the start
    of the line and the position.

    The log contains markers, which are lines about the start and end of each command. If the text in front of a marker
    possibly begins a secret that continues behind the marker, the agent holds this text back. The position then
    stays in front of the text, although the event of the marker is sent. In this case `reported` is the number of log
    bytes up to the end of the last marker whose event is sent. `command` is then the number of the command that runs
    after this marker. Otherwise `reported` is 0.

    `older` holds the bytes of a cursor that an older release wrote, which contains no byte position. For any other
    cursor, `older` is empty.
    """

    offset: int = 0
    command: int = 0
    reported: int = 0
    column: int = 0
    older: bytes = b""

    def encode(self) -> bytes:
        """Return the cursor as the bytes that an event carries. The contract allows at most 120 bytes of ASCII."""
        if self.older:
            return self.older
        return f"{VERSION}|{self.offset}|{self.command}|{self.reported}|{self.column}".encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Cursor:
        """Return the cursor that `encode` wrote. Empty data is the start of the log.

        Raises:
            ValueError: the data is no cursor of this release or of an older release.
        """
        if not data:
            return cls()
        if data.startswith(OLDER):
            return cls(older=data[:200])
        try:
            version, *numbers = data.decode("ascii").split("|")
            offset, command, reported, column = map(int, numbers)
        except ValueError as error:
            raise ValueError(f"not a log cursor: {data[:100]!r}") from error
        if version != VERSION or min(offset, command, reported, column) < 0:
            raise ValueError(f"not a log cursor: {data[:100]!r}")
        return cls(offset, command, reported, column)
