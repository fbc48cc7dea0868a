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
    """

    timestamp: str = ""
    count: int = 0
    offset: int = 0
    total: int = 0
    command: int = 0

    def encode(self) -> bytes:
        """Return the cursor as it travels on the wire, at most 100 bytes of ASCII."""
        return f"1|{self.timestamp}|{self.count}|{self.offset}|{self.total}|{self.command}".encode("ascii")

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
            count, offset, total, command = (int(number) for number in numbers)
        except ValueError as error:
            raise ValueError(f"not a log cursor: {data[:100]!r}") from error
        if version != "1" or min(count, offset, total, command) < 0:
            raise ValueError(f"not a log cursor: {data[:100]!r}")
        return cls(timestamp, count, offset, total, command)
