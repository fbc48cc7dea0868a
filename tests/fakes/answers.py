"""Requests that FakeApi has received, and scripted answers that replace the answers of FakeApi.

Both live as long as the FakeApi of a test.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from agent.domain.json import Object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Play = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
# Status of a scripted answer that never comes.
HANG = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One received request. `at` is the time of the event loop in seconds."""

    verb: str
    path: str
    query: Object
    body: Object | None
    authorization: str
    at: float = 0.0


@dataclass(slots=True)
class Scripted:
    """An answer to the next `times` requests of a verb on paths that contain `part`.

    The status `HANG` means no answer. If `applied` is true, the request takes effect first. `play`, if given, is a
    function that makes the answer in place of `status` and `body`.
    """

    verb: str
    part: str
    status: int
    body: str
    headers: dict[str, str]
    times: int
    applied: bool = False
    play: Play | None = None

    def fits(self, verb: str, path: str) -> bool:
        return self.times > 0 and self.verb in ("", verb) and self.part in path


def status_text(status: int, message: str) -> str:
    """Return the JSON text of a Status object, as an API server writes failures."""
    return json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status})


def failed(status: int, message: str) -> web.Response:
    return web.Response(status=status, text=status_text(status, message))
