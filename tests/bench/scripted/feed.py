"""The watch events of the scripted API server (api.py).

Each watch gets the events that its label selector matches, as Kubernetes sends them. A Feed lives as long as the
server. It stores the last few thousand events, for watches that begin at an older version.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bench.scripted.connection import Connection

# Number of events that a Feed stores.
KEPT = 4000


class Feed:
    """The events of one kind of object, and the watches that get these events.

    A Feed collects the events of one iteration of the event loop and sends them together.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.recent: deque[tuple[int, dict[str, str], bytes]] = deque(maxlen=KEPT)
        self.watches: dict[Connection, tuple[dict[str, str], list[bytes]]] = {}
        self.due = False

    def send(self, kind: bytes, version: int, labels: dict[str, str], text: bytes) -> None:
        """Queue an event for every watch whose label selector matches `labels`.

        `kind` is the type of the event, such as ADDED. `text` is the object as JSON.
        """
        event = b'{"type":"%b","object":%b}\n' % (kind, text)
        self.recent.append((version, labels, event))
        for selector, waiting in self.watches.values():
            if selector.items() <= labels.items():
                waiting.append(event)
        if not self.due:
            self.due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Send the queued events to the watches."""
        self.due = False
        for connection, (_, waiting) in self.watches.items():
            if waiting:
                connection.send(b"".join(waiting))
                waiting.clear()

    def watch(self, connection: Connection, query: dict[str, str]) -> None:
        """Open a watch that begins after the resource version in `query`.

        First send the stored events after this version.
        """
        since = int(query["resourceVersion"])
        if self.recent and len(self.recent) == KEPT and self.recent[0][0] > since + 1:
            connection.answer(410, b'{"kind":"Status","code":410,"message":"too old resource version"}')
            return
        selector = selector_of(query)
        missed = [event for version, labels, event in self.recent if version > since and fits(selector, labels)]
        connection.begin()
        connection.send(b"".join(missed))
        self.watches[connection] = (selector, [])
        connection.on_lost = lambda: self.close(connection)
        asyncio.get_running_loop().call_later(float(query.get("timeoutSeconds", 300)), self.close, connection)

    def close(self, connection: Connection) -> None:
        if self.watches.pop(connection, None) is not None:
            connection.end()

    def bookmark(self, version: int) -> None:
        """Send a bookmark with the resource version `version` to every watch."""
        text = b'{"type":"BOOKMARK","object":{"kind":"%b","metadata":{"resourceVersion":"%d"}}}\n'
        for connection in self.watches:
            connection.send(text % (self.kind.encode(), version))


def selector_of(query: dict[str, str]) -> dict[str, str]:
    """Return the label selector in `query` as a dict. The selector may contain only equalities."""
    pairs = (pair.split("=", 1) for pair in query.get("labelSelector", "").split(",") if pair)
    return {name.rstrip("="): value.lstrip("=") for name, value in pairs}


def fits(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Return whether `labels` has all labels of the selector with the same values."""
    return selector.items() <= labels.items()
