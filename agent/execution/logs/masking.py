"""Masks secret values in everything that the agent sends: each form of a secret becomes `***`.

A `Masker` lives as long as the log of one session and works on a stream. A secret that is cut over several reads is
still found: bytes that may begin a secret are kept back (`buffered`) until more bytes arrive. Output that ends with the
start of a secret is therefore delayed. Other output passes at once. `flush` returns the bytes that were kept back, at
the end of the text.

The result does not depend on how the stream was cut. Wherever nothing is buffered, a new masker continues with the same
result. The positions in a log can therefore be resumed. Occurrences that overlap become one `***`.

Known limits: values under `SHORTEST` bytes are not masked (`too_short`). Values with more lines or bytes than
`MOST_FORMS` forms hold are masked in part (`too_long`). A secret that a program transforms in another way (reversed,
hashed, spelled out) is not recognised.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from agent.execution.logs.sieve import Sieve

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MASK = b"***"
# Minimum number of bytes of a value that is masked. A shorter value would mask too much ordinary text.
SHORTEST = 4
# Maximum number of bytes in a form. Longer forms are masked block by block, which bounds the bytes kept back and the
# search.
LONGEST = 4096
# Maximum number of forms of all secrets together.
MOST_FORMS = 1024
# Maximum number of bytes in a run of overlapping occurrences. A longer run becomes several masks. Without this limit,
# the secret "aaaa" in an endless "aaa..." would be kept back for ever.
LONGEST_RUN = 16 * 1024
# Line lengths of base64 tools: 76 for coreutils and MIME, 64 for OpenSSL and PEM.
WRAPS = (76, 64)

Span = tuple[int, int]


class Masker:
    """Replaces secrets in a stream of bytes. Takes a mapping of name to value, or bare values.

    At most `LONGEST_RUN` + 2 * `LONGEST` bytes are kept back. `too_short` names the secrets that are not masked,
    `too_long` those that are masked in part. Bare values have the numbers from 0 as names.
    """

    def __init__(self, secrets: Mapping[str, str] | Iterable[bytes] = ()) -> None:
        forms: set[bytes] = set()
        short: list[str] = []
        long: list[str] = []
        for name, value in named(secrets):
            if len(value.strip()) < SHORTEST:
                short.append(name)
                continue
            for form in forms_of(value):
                if len(forms) >= MOST_FORMS:
                    long.append(name)
                    break
                forms.add(form)
        self.too_short = tuple(short)
        self.too_long = tuple(long)
        self.forms = tuple(sorted(forms, key=lambda form: (-len(form), form)))
        self.sieve = Sieve(innermost(self.forms))
        self.heads = tuple((form[:SHORTEST], form) for form in self.forms)
        self.stubs = frozenset(form[:size] for form in self.forms for size in range(1, SHORTEST))
        self.longest = len(self.forms[0]) if self.forms else 0
        self.kept = b""

    @property
    def buffered(self) -> int:
        """Return the number of bytes at the end of the input that are kept back."""
        return len(self.kept)

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream. Returns the text that no later byte can change, masked."""
        if not self.forms:
            return data
        text = self.kept + data if self.kept else data
        spans = self.spans(text)
        end = self.settled(text, spans)
        self.kept = text[end:]
        return masked(text[:end] if self.kept else text, spans)

    def flush(self, *, hide: bool = False) -> bytes:
        """Return the bytes that were kept back, masked.

        With `hide` these bytes become `***`, because text that the agent does not read may complete a secret.
        """
        text, self.kept = self.kept, b""
        if hide:
            return MASK if text else b""
        return masked(text, self.spans(text))

    def mask(self, text: bytes) -> bytes:
        """Mask a complete text. The stream is not touched."""
        return masked(text, self.spans(text))

    def spans(self, text: bytes) -> list[Span]:
        """Return where secrets are, in order. Overlapping occurrences are one span."""
        if not self.sieve.may_match(text):  # nearly every text returns here
            return []
        runs: list[Span] = []
        start = end = -1
        for first, last in sorted(span for form in self.forms for span in occurrences(text, form)):
            if first >= end:
                start, end = first, last
                runs.append((start, end))
            elif first < start + LONGEST_RUN and last > end:
                end = last
                runs[-1] = (start, end)
        return runs

    def settled(self, text: bytes, spans: list[Span]) -> int:
        """Return the length of the text that later bytes cannot change."""
        begin = self.partial(text)
        for first, last in spans:
            if first < begin < last:
                return first
        return begin

    def partial(self, text: bytes) -> int:
        """Return the first index from which the text is the beginning of a form, or the length of the text."""
        size = len(text)
        best = size
        for head, form in self.heads:
            index = text.find(head, max(0, size - len(form) + 1))
            while 0 <= index < best:
                if form.startswith(text[index:]):
                    best = index
                    break
                index = text.find(head, index + 1)
        for index in range(max(0, size - SHORTEST + 1), size):
            if index < best and text[index:] in self.stubs:
                return index
        return best


def masked(text: bytes, spans: list[Span]) -> bytes:
    """Return `text` with the mask in place of each span. Spans beyond the end of the text are ignored."""
    if not spans:
        return text
    parts: list[bytes] = []
    done = 0
    for first, last in spans:
        if last > len(text):
            break
        parts += (text[done:first], MASK)
        done = last
    parts.append(text[done:])
    return b"".join(parts)


def occurrences(text: bytes, form: bytes) -> Iterator[Span]:
    """Yield every occurrence of a form, also overlapping ones."""
    index = text.find(form)
    while index >= 0:
        yield index, index + len(form)
        index = text.find(form, index + 1)


def innermost(forms: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the forms that contain no other form. If none of them is in a text, no form is in the text."""
    if len(forms) > MOST_FORMS // 4:
        return forms
    return tuple(form for form in forms if not any(other in form for other in forms if other is not form))


def named(secrets: Mapping[str, str] | Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the value of each secret."""
    if isinstance(secrets, Mapping):
        for name, value in secrets.items():
            yield name, value.encode("utf-8", "surrogateescape")
    else:
        for number, raw in enumerate(secrets):
            yield str(number), raw


def forms_of(value: bytes) -> Iterator[bytes]:
    """Yield the forms in which a value may appear, each `SHORTEST` to `LONGEST` bytes long. A form may come twice."""
    value = value.strip()
    lines = [line.strip() for line in value.splitlines()]
    for text in (value, *lines):
        for form in spellings(text):
            yield from blocks(form)
    for form in base64_forms(value):
        yield from blocks(form)


def spellings(text: bytes) -> Iterator[bytes]:
    """Yield the text itself, its percent-encodings in the usual dialects, and its JSON strings."""
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

    Inside a longer text the value has three alignments. Only the part of each that does not depend on the text around
    the value is a form.
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


def blocks(form: bytes) -> Iterator[bytes]:
    """Yield the form, in nearly equal parts if it is longer than `LONGEST`. Yields nothing if it is too short."""
    if len(form) < SHORTEST:
        return
    count = -(-len(form) // LONGEST)
    size = -(-len(form) // count)
    for start in range(0, len(form), size):
        yield form[start : start + size]
