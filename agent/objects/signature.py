"""Sign URLs of an object store: AWS Signature Version 4 in the query, as every S3-compatible store accepts it.

A signed URL allows one request with one method on one object, until it expires. Headers that are signed too, such as a
checksum, must be sent as they were signed. So the store itself refuses other bytes than those the agent has allowed.
The functions perform no I/O.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

ALGORITHM = "AWS4-HMAC-SHA256"
# The body is not part of the signature. A signed checksum header binds the body instead.
UNSIGNED = "UNSIGNED-PAYLOAD"


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of an object store. `token` is the session token of temporary credentials, "" for none.

    `expires` is in seconds since the epoch, None for credentials that do not expire. `repr` hides the secrets.
    """

    key_id: str
    secret: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires: float | None = None


def encode(text: str, safe: str = "") -> str:
    """Percent-encode a text as the signature demands: only letters, digits and `-._~` stay."""
    return quote(text, safe=f"-._~{safe}")


def query_text(query: Mapping[str, str]) -> str:
    """Return the text of a query, sorted as the signature demands."""
    return "&".join(f"{name}={value}" for name, value in sorted((encode(k), encode(v)) for k, v in query.items()))


def signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def presign(
    method: str,
    url: str,
    credentials: Credentials,
    region: str,
    now: float,
    seconds: int,
    *,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    service: str = "s3",
) -> str:
    """Return `url` with a signature for one request with `method`.

    `url` has an encoded path and no query. `headers` must be sent with the request. `now` is in seconds since the
    epoch, and the URL is valid for `seconds` after it.
    """
    parts = urlsplit(url)
    signed = {"host": parts.netloc} | {name.lower(): " ".join(value.split()) for name, value in (headers or {}).items()}
    names = ";".join(sorted(signed))
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    asked = {
        **(query or {}),
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credentials.key_id}/{scope}",
        "X-Amz-Date": moment,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": names,
        **({"X-Amz-Security-Token": credentials.token} if credentials.token else {}),
    }
    canonical = "\n".join(
        (
            method,
            parts.path or "/",
            query_text(asked),
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            UNSIGNED,
        )
    )
    text = "\n".join((ALGORITHM, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = signing_key(credentials.secret, moment[:8], region, service)
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    return f"{parts.scheme}://{parts.netloc}{parts.path or '/'}?{query_text(asked)}&X-Amz-Signature={signature}"
