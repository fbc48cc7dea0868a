"""The forms in which a secret value can appear in a log.

The forms are the whole value, each of its lines, the value of each NAME=VALUE line, and encodings of all these texts.

All functions are pure. No form is longer than `LONGEST`. A longer text is split into blocks that overlap by one byte,
so that the masker replaces all blocks of the text by one mask.
"""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Minimum number of bytes of a secret value that is masked. A shorter value would mask too much ordinary text.
SHORTEST = 4
# If a secret has lines NAME=VALUE, each VALUE is masked also where it stands without its name. This is the minimum
# number of bytes of such a VALUE. Shorter values are words of ordinary text, such as "true" or "8080".
SHORTEST_ASSIGNED = 8
# Maximum number of bytes in a form (one spelling of a secret that the masker searches for). This limit also bounds the
# bytes that the masker holds back while it waits for more text.
LONGEST = 256
# Maximum number of bytes at the start of one secret value that are masked. The rest of a longer value is not masked.
LONGEST_VALUE = 64 * 1024
# Line lengths of base64 tools: 76 for coreutils and MIME, 64 for OpenSSL and PEM.
WRAPS = (76, 64)
ASSIGNMENT = re.compile(rb"(?:export\s+)?[A-Za-z_][A-Za-z0-9_.-]*=(.*)", re.DOTALL)


def forms_of(value: bytes) -> Iterator[bytes]:
    """Yield the forms in which a value may appear, each `SHORTEST` to `LONGEST` bytes long. A form may come twice."""
    value = value.strip()
    # Of equal lines only the first is used, because the others would give the same forms again.
    lines = list(dict.fromkeys(line for each in value.splitlines() if len(line := each.strip()) >= SHORTEST))
    for text in (value, *lines, *assigned_values(lines)):
        for form in spellings(text):
            yield from blocks(form)
    for form in base64_forms(value):
        yield from blocks(form)


def spellings(text: bytes) -> Iterator[bytes]:
    """Yield the text itself, its percent-encodings as usual encoders write them, and its encodings as a JSON string."""
    yield text
    for encoded in (quote(text, safe=""), quote(text), quote(text, safe="!'()*"), quote_plus(text)):
        yield encoded.encode()
        yield lower_escapes(encoded.encode())
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        escaped = json.dumps(decoded, ensure_ascii=ascii_only)[1:-1].encode("utf-8", "surrogateescape")
        yield escaped
        # Go's JSON encoder escapes these three characters for HTML.
        yield escaped.replace(b"<", rb"\u003c").replace(b">", rb"\u003e").replace(b"&", rb"\u0026")


def lower_escapes(encoded: bytes) -> bytes:
    """Return percent-encoded text with its hexadecimal digits in lower case."""
    head, *escapes = encoded.split(b"%")
    return b"%".join((head, *(escape[:2].lower() + escape[2:] for escape in escapes)))


def base64_forms(value: bytes) -> Iterator[bytes]:
    """Yield the base64 forms of a value: whole without padding, wrapped into lines, and inside a longer text.

    base64 encodes groups of three bytes, so a value inside a longer text can begin at three places of a group. For each
    place, the form is the part of the encoded text that does not depend on the bytes around the value.
    """
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        whole = encode(value).rstrip(b"=")
        yield whole
        for before, spoiled in ((0, 0), (1, 2), (2, 3)):
            encoded = encode(b"\0" * before + value)
            yield encoded[spoiled : (before + len(value)) * 8 // 6]
        for width in WRAPS:
            if len(whole) > width:
                yield from (whole[start : start + width] for start in range(0, len(whole) - 8, width))


def assigned_values(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the value of each NAME=VALUE line, without the quotes around it."""
    for line in lines:
        match = ASSIGNMENT.fullmatch(line)
        if not match:
            continue
        value = match[1].strip()
        if len(value) > 1 and value[:1] in (b"'", b'"') and value[:1] == value[-1:]:
            value = value[1:-1]
        if len(value) >= SHORTEST_ASSIGNED:
            yield value


def blocks(form: bytes) -> Iterator[bytes]:
    """Yield the form, in nearly equal parts if it is longer than `LONGEST`. Yield nothing if the form is too short.

    Each part begins with the last byte of the part before it.
    """
    if len(form) < SHORTEST:
        return
    count = max(1, -(-(len(form) - 1) // (LONGEST - 1)))
    step = -(-(len(form) - 1) // count)
    for start in range(0, len(form) - 1, step):
        yield form[start : start + step + 1]
