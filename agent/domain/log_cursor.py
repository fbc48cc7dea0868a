"""The position in a pod's log up to which the agent has read.

A cursor lives as long as a session. The scheduler stores it as opaque bytes and sends it back in a resume point.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cursor:
    """A byte position in a pod's log. Reading can continue there without a lost or repeated byte.

    The Kubernetes API cannot start a log at a byte, only at a time. The position is therefore relative to a line.
    `timestamp` is the time of the line as the API wrote it, "" for the start of the log. `count` is the number of the
    line among the lines with that timestamp, from 1. `offset` is the number of bytes after the start of the line, with
    newlines and without timestamps, and may reach into later lines. `total` is the number of bytes since the start of
    the log. `command` is the number of the command that runs at the position, 0 between two commands.

    The log contains markers, which are lines about the start and end of each command. The agent may have to hold back
    text in front of a marker, because the text may begin a secret that continues behind the marker. The position then
    stays in front of the text, although the event of the marker is sent. In this case `reported` is the number of log
    bytes up to the end of the last marker whose event is sent, and `command` is the number of the command that runs
    there. Otherwise `reported` is 0.
    """

    timestamp: str = ""
    count: int = 0
    offset: int = 0
    total: int = 0
    command: int = 0
    reported: int = 0

    def encode(self) -> bytes:
        """Return the cursor in the form of the contract: at most 120 bytes of ASCII."""
        text = f"1|{self.timestamp}|{self.count}|{self.offset}|{self.total}|{self.command}"
        # Older agents of version 1 refuse a cursor with the field `reported`, so this field is left out when it is 0.
        return (f"{text}|{self.reported}" if self.reported else text).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Cursor:
        """Return the cursor that `encode` wrote. Empty data is the start of the log.

        Raises:
            ValueError: the data is no cursor of this version.
        """
        if not data:
            return cls()
        try:
            version, timestamp, *numbers = data.decode("ascii").split("|")
            count, offset, total, command, reported = map(int, numbers if len(numbers) > 4 else (*numbers, "0"))
        except ValueError as error:
            raise ValueError(f"not a log cursor: {data[:100]!r}") from error
        if version != "1" or min(count, offset, total, command, reported) < 0:
            raise ValueError(f"not a log cursor: {data[:100]!r}")
        return cls(timestamp, count, offset, total, command, reported)
