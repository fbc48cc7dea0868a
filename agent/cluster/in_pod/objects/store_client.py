"""Send requests to an object store over one connection. Part of the programs `send_objects` and `receive_inputs`.

`packaging` sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import http.client
import re
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html import unescape
from urllib.parse import parse_qs, urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONNECTIONS = 8  # number of requests at the same time
TRIES = 5  # number of tries for one request
CONNECT_SECONDS = 10.0  # seconds until a connection that does not open fails
REQUEST_SECONDS = 60.0  # seconds without progress after which a request fails
ANSWER_BYTES = 64 << 10  # maximum number of bytes of an answer about an error
CLOCK_SECONDS = 120.0  # difference of two clocks, in seconds, that an error mentions
SUCCESS = 200
STORE_ERRORS = (OSError, http.client.HTTPException)


def may_pass(status: int) -> bool:
    """Return whether a request with this answer can succeed if it is sent again."""
    return status >= 500 or status in (408, 425, 429)


class StoreClient:
    """The connection of one thread. It is opened at the first request, and again after an error."""

    def __init__(self, trust: ssl.SSLContext | None) -> None:
        self.trust = trust
        self.connection: http.client.HTTPConnection | None = None
        self.place = ("", "")

    def request(
        self, method: str, url: str, headers: Mapping[str, str], seconds: float, body: Iterable[bytes] = ()
    ) -> http.client.HTTPResponse:
        """Send one request and return the answer, whose body the caller reads to its end.

        SECONDS is the time without progress after which the request fails. Raises one of STORE_ERRORS.
        """
        parts = urlsplit(url)
        connection = self.connect(parts.scheme, parts.netloc, seconds)
        connection.putrequest(method, f"{parts.path}?{parts.query}", skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        broken: OSError | None = None
        try:
            for data in body:
                connection.send(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            # A store may refuse a request and close the connection before it has read the whole body.
            broken = error
        try:
            return connection.getresponse()
        except STORE_ERRORS as error:
            raise broken or error from None

    def connect(self, scheme: str, host: str, seconds: float) -> http.client.HTTPConnection:
        connection = self.connection
        if connection is None or self.place != (scheme, host):
            self.close()
            opening = min(CONNECT_SECONDS, seconds)
            if scheme == "https":
                trust = self.trust or ssl.create_default_context()
                connection = http.client.HTTPSConnection(host, timeout=opening, context=trust)
            else:
                connection = http.client.HTTPConnection(host, timeout=opening)
            connection.connect()
            self.connection, self.place = connection, (scheme, host)
        if connection.sock is None:  # the store has asked to close the connection after its last answer
            connection.connect()
        connection.sock.settimeout(seconds)
        return connection

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None


def explain(answer: http.client.HTTPResponse, body: bytes, url: str) -> str:
    """Return the error of an answer, without the URL. The text names a difference of the clocks."""
    code, message = (re.search(rb"<%s>([^<]{1,300})" % name, body) for name in (b"Code", b"Message"))
    text = f"HTTP {answer.status}"
    if code:
        text += " " + code[1].decode("utf-8", "replace")
    if message:
        text += ": " + unescape(message[1].decode("utf-8", "replace"))
    age = seconds_since_signature(answer, url)
    if answer.status in (400, 403) and abs(age) > CLOCK_SECONDS:
        when = "ago" if age > 0 else "in the future"
        text += f" (by the store's clock, the agent signed the URL {abs(age):.0f} s {when}: compare the two clocks)"
    return text


def seconds_since_signature(answer: http.client.HTTPResponse, url: str) -> float:
    """Return the seconds from the signature of the URL to the store's time, 0 if one of them is not known."""
    try:
        now = parsedate_to_datetime(answer.headers["Date"])
        text = parse_qs(urlsplit(url).query)["X-Amz-Date"][0]
        signed = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return (now - signed).total_seconds()
    except (KeyError, TypeError, ValueError):
        return 0.0
