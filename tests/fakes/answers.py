"""What the API for tests was asked, and the answers that a test puts before the real ones."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from agent.domain.json import Object

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Play = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]
HANG = 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived."""

    verb: str
    path: str
    query: Object
    body: Object | None
    authorization: str
    at: float = 0.0


@dataclass(slots=True)
class Scripted:
    """An answer that is given instead of the real one; a status of `HANG` is none at all; `play` does more."""

    verb: str
    part: str
    status: int
    body: str
    headers: dict[str, str]
    times: int
    applied: bool = False
    play: Play | None = None

    def fits(self, verb: str, path: str) -> bool:
        """Whether this is for a request."""
        return self.times > 0 and self.verb in ("", verb) and self.part in path


def status_text(status: int, message: str) -> str:
    """Return a failure as the API writes it."""
    return json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status})


def failed(status: int, message: str) -> web.Response:
    """Return a failure."""
    return web.Response(status=status, text=status_text(status, message))
