"""A byte position in the log of an environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Cursor:
    """A byte position in an environment's log, from which it can be read again exactly.

    The anchor is the start of a line: its timestamp (as the API wrote it) and its ordinal among the lines of that
    timestamp, from 1. `offset` counts payload bytes from there (timestamps stripped, newlines included) that are done,
    and may reach over later lines. `total` is the payload done since the start of the log, `command` the command
    that runs there, 0 between two. An empty timestamp is the start of the log.

    `reported` is not 0 where text before a marker is still kept back, because it may begin a secret that goes on behind
    the marker. Markers up to this byte of the payload were reported, and `command` is of there.
    """

    timestamp: str = ""
    count: int = 0
    offset: int = 0
    total: int = 0
    command: int = 0
    reported: int = 0

    def encode(self) -> bytes:
        """Return the cursor as it travels on the wire, at most 120 bytes of ASCII."""
        text = f"1|{self.timestamp}|{self.count}|{self.offset}|{self.total}|{self.command}"
        # Agents of version 1 read no such field, so it is there only where it is needed.
        return (f"{text}|{self.reported}" if self.reported else text).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Cursor:
        """Read what `encode` wrote; empty is the start of the log.

        Raises:
            ValueError: it is no cursor of this version.
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
