"""Requests that FakeApi has received, and scripted answers that FakeApi sends in place of its own answers.

Objects of both classes live as long as the FakeApi of a test.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from agent.domain.json import Object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Play = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
# This value, as the status of a scripted answer, means that the answer never comes.
HANG = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request that FakeApi has received. `at` is the time of its arrival on the event loop's clock, in seconds."""

    verb: str
    path: str
    query: Object
    body: Object | None
    authorization: str
    at: float = 0.0
    accept: str = ""


@dataclass(slots=True)
class Scripted:
    """A scripted answer to the next `times` requests of a verb on paths that contain `part`.

    With the status `HANG`, the request gets no answer. If `applied` is true, the request first takes effect as usual.
    If `play` is given, the function `play` creates the answer, and `status` and `body` are not used.
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
    """Return the JSON text of a Kubernetes Status object for a failure, as an API server writes it."""
    return json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status})


def failed(status: int, message: str) -> web.Response:
    return web.Response(status=status, text=status_text(status, message))
