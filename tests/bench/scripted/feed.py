"""What the scripted API tells its watches: every event, to those whose selector fits, as a real one writes it.

Lives as long as the server. The last few thousand events are kept, for watches that begin at an older version.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.scripted.connection import Connection

KEPT = 4000


class Feed:
    """What happened to one kind of object, and the watches that are told of it. Events of one turn go out together."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.told: deque[tuple[int, dict[str, str], bytes]] = deque(maxlen=KEPT)
        self.watches: dict[Connection, tuple[dict[str, str], list[bytes]]] = {}
        self.due = False

    def tell(self, kind: bytes, version: int, labels: dict[str, str], text: bytes) -> None:
        """Tell every watch whose selector fits."""
        event = b'{"type":"%b","object":%b}\n' % (kind, text)
        self.told.append((version, labels, event))
        for selector, waiting in self.watches.values():
            if selector.items() <= labels.items():
                waiting.append(event)
        if not self.due:
            self.due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send what was told in this turn."""
        self.due = False
        for connection, (_, waiting) in self.watches.items():
            if waiting:
                connection.send(b"".join(waiting))
                waiting.clear()

    def watch(self, connection: Connection, query: dict[str, str]) -> None:
        """Open a watch from a version on."""
        since = int(query["resourceVersion"])
        if self.told and len(self.told) == KEPT and self.told[0][0] > since + 1:
            connection.answer(410, b'{"kind":"Status","code":410,"message":"too old resource version"}')
            return
        selector = selector_of(query)
        missed = [event for version, labels, event in self.told if version > since and fits(selector, labels)]
        connection.begin()
        connection.send(b"".join(missed))
        self.watches[connection] = (selector, [])
        connection.on_lost = lambda: self.close(connection)
        asyncio.get_running_loop().call_later(float(query.get("timeoutSeconds", 300)), self.close, connection)

    def close(self, connection: Connection) -> None:
        """End a watch."""
        if self.watches.pop(connection, None) is not None:
            connection.end()

    def bookmark(self, version: int) -> None:
        """Say in every watch that it is current."""
        text = b'{"type":"BOOKMARK","object":{"kind":"%b","metadata":{"resourceVersion":"%d"}}}\n'
        for connection in self.watches:
            connection.send(text % (self.kind.encode(), version))


def selector_of(query: dict[str, str]) -> dict[str, str]:
    """Read a label selector of equalities."""
    pairs = (pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair)
    return {name.rstrip("="): value.lstrip("=") for name, value in pairs}


def fits(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Whether an object's labels are selected."""
    return selector.items() <= labels.items()
