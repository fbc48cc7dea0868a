"""The errors of the object store, and the functions that read its answers."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING

from agent.domain.errors import ClusterError, Reason

if TYPE_CHECKING:
    from aiohttp import StreamReader

# Codes of an answer after which another try can succeed, besides those from 500 on.
RETRYABLE = frozenset({408, 425, 429})
NOT_IMPLEMENTED = 501


class StoreError(ClusterError):
    """A request to the object store failed. `code` is the store's code, such as `NoSuchKey`, "" for none."""

    def __init__(self, message: str, *, code: str = "", status: int = 0, retryable: bool = False) -> None:
        super().__init__(message, reason=Reason.OBJECT_STORE_UNAVAILABLE, status=status, retryable=retryable)
        self.code = code


def xml_field(data: bytes, name: str) -> str:
    """Return the text of the first element of an answer with this name, "" if there is none."""
    found = re.search(rb"<%s>([^<]{0,4096})</%s>" % (name.encode(), name.encode()), data)
    return unescape(found[1].decode("utf-8", "replace")) if found else ""


async def read_answer(content: StreamReader, limit: int) -> bytes:
    """Return the body of an answer, at most `limit` bytes. A single `read` returns what has arrived so far."""
    data = bytearray()
    while len(data) < limit and (part := await content.read(limit - len(data))):
        data += part
    return bytes(data)


def error_of_answer(what: str, status: int, body: bytes) -> StoreError:
    """Return the error for an answer by which the store refuses a request."""
    code, message = xml_field(body, "Code"), xml_field(body, "Message")
    text = f"{what}: HTTP {status}{f' {code}' if code else ''}{f': {message[:300]}' if message else ''}"
    if code == "RequestTimeTooSkewed":
        text += "; the clock of the agent's node differs from the clock of the store"
    retryable = status in RETRYABLE or (status >= 500 and status != NOT_IMPLEMENTED)
    return StoreError(text, code=code, status=status, retryable=retryable)
