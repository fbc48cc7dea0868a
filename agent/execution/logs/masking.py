"""Secret values leave no trace in what the agent sends: each of their forms becomes `***`.

A `Masker` lives as long as the log of one session. It works on a stream: a secret that is cut over any number of reads
is found all the same, because a suffix that may be the beginning of one is kept back (`held`) until more bytes decide.
It is kept back however long the log is silent: whoever prints the beginning of a secret and pauses waits for the rest,
while a prompt that is not such a beginning passes at once. `flush` lets it out where the text ends.

The result does not depend on how the stream was cut, and wherever nothing is held a fresh masker goes on alike: that
is what makes the positions of a log resumable. Occurrences that overlap become one `***`.

Known limits: values under `SHORTEST` bytes are not masked (`too_short`), values with more lines or bytes than
`MOST_FORMS` forms hold are masked in part (`too_long`), and a secret that a program transforms otherwise (reversed,
hashed, spelled out) is not recognised.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MASK = b"***"
SHORTEST = 4
# Longer forms are masked block by block: it bounds what is held back and the work to find where holding begins.
LONGEST = 4096
MOST_FORMS = 1024
# A run of overlapping occurrences becomes several masks beyond this, so that "aaaa" in an endless "aaa..." is not
# held for ever.
LONGEST_RUN = 16 * 1024
# How base64 tools wrap: coreutils and MIME at 76, OpenSSL and PEM at 64.
WRAPS = (76, 64)

# Where looking at every second word of a text is cheaper than searching it for each needle (measured).
WORD = 8
SIEVED_FROM = 23
SIEVED_COUNT = 16

Span = tuple[int, int]


class Masker:
    """Replaces secrets in a stream of bytes; takes name -> value, or bare values.

    `held` is how many bytes at the end of what was fed are kept back, verbatim; at most `LONGEST_RUN` + 2 * `LONGEST`.
    `too_short` and `too_long` name the secrets (or number them, from 0) that are not or not wholly masked.
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
    def held(self) -> int:
        """How many of the bytes fed are not yet given out."""
        return len(self.kept)

    def feed(self, data: bytes) -> bytes:
        """Take more of the stream and return what is decided of it, masked."""
        if not self.forms:
            return data
        text = self.kept + data if self.kept else data
        spans = self.spans(text)
        end = self.settled(text, spans)
        self.kept = text[end:]
        return masked(text[:end] if self.kept else text, spans)

    def flush(self, *, hide: bool = False) -> bytes:
        """Return what was kept back. `hide`: the text goes on, unseen by us, so that it may well be a secret's."""
        text, self.kept = self.kept, b""
        if hide:
            return MASK if text else b""
        return masked(text, self.spans(text))

    def mask(self, text: bytes) -> bytes:
        """Mask a text that stands alone; the stream is not touched."""
        return masked(text, self.spans(text))

    def spans(self, text: bytes) -> list[Span]:
        """Return where secrets are, in order, overlapping ones as one."""
        if not self.sieve.catches(text):
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
        """Return up to where no byte to come can change what is masked."""
        begin = self.partial(text)
        for first, last in spans:
            if first < begin < last:
                return first
        return begin

    def partial(self, text: bytes) -> int:
        """Return the first index whose suffix is the beginning of a form, else the end."""
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


class Sieve:
    """Tells quickly whether a text may hold one of the needles; never misses one, seldom errs.

    A search costs one pass over the text per needle. Many long needles (a private key has hundreds of forms) share one
    pass instead: an occurrence covers at least one of the words that stand every `step` words in the text, so these
    are looked up among the words at the needles' first offsets.
    """

    def __init__(self, needles: tuple[bytes, ...]) -> None:
        long = {needle for needle in needles if len(needle) >= SIEVED_FROM}
        if len(long) < SIEVED_COUNT:
            long = set()
        self.singles = tuple(needle for needle in needles if needle not in long)
        self.step = (min(map(len, long)) - WORD + 1) // WORD if long else 0
        self.words = {
            memoryview(needle[offset : offset + WORD]).cast("Q")[0]
            for needle in long
            for offset in range(self.step * WORD)
        }

    def catches(self, text: bytes) -> bool:
        """Return whether a needle may be in the text."""
        if any(needle in text for needle in self.singles):
            return True
        if not self.words:
            return False
        words = memoryview(text)[: len(text) // WORD * WORD].cast("Q")
        return not self.words.isdisjoint(words[:: self.step])


def masked(text: bytes, spans: list[Span]) -> bytes:
    """Return `text` with each of the spans that lie in it replaced."""
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
    """Yield every occurrence, also those that overlap."""
    index = text.find(form)
    while index >= 0:
        yield index, index + len(form)
        index = text.find(form, index + 1)


def innermost(forms: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the forms that contain no other: if none of these is in a text, no form is."""
    if len(forms) > MOST_FORMS // 4:
        return forms
    return tuple(form for form in forms if not any(other in form for other in forms if other is not form))


def named(secrets: Mapping[str, str] | Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield name and value as bytes."""
    if isinstance(secrets, Mapping):
        for name, value in secrets.items():
            yield name, value.encode("utf-8", "surrogateescape")
    else:
        for number, raw in enumerate(secrets):
            yield str(number), raw


def forms_of(value: bytes) -> Iterator[bytes]:
    """Yield how a value may show up, each form `SHORTEST` to `LONGEST` bytes long; some come twice."""
    value = value.strip()
    lines = [line.strip() for line in value.splitlines()]
    for text in (value, *lines):
        for form in spellings(text):
            yield from blocks(form)
    for form in base64_forms(value):
        yield from blocks(form)


def spellings(text: bytes) -> Iterator[bytes]:
    """Yield the text as it is, percent-encoded in the usual dialects, and as JSON writes it."""
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
        # What Go's encoder makes of it, for the sake of HTML.
        yield escaped.replace(b"<", rb"\u003c").replace(b">", rb"\u003e").replace(b"&", rb"\u0026")


def lower_escapes(encoded: bytes) -> bytes:
    """Return percent-encoded text with its hexadecimal digits in lower case."""
    head, *escapes = encoded.split(b"%")
    return b"%".join((head, *(escape[:2].lower() + escape[2:] for escape in escapes)))


def base64_forms(value: bytes) -> Iterator[bytes]:
    """Yield the part of its base64 that is the same whatever stands before and after it, for the three alignments.

    Also the whole of it without padding, and the lines of it where tools wrap.
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
    """Yield the form, in near equal parts when it is longer than `LONGEST`; nothing when it is too short."""
    if len(form) < SHORTEST:
        return
    count = -(-len(form) // LONGEST)
    size = -(-len(form) // count)
    for start in range(0, len(form), size):
        yield form[start : start + size]
