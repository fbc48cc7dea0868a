"""Masks secret values in everything that the agent sends: each form of a secret becomes `***`.

A `Masker` lives as long as the log of one session and works on a stream. A secret that is cut over several reads is
still found: bytes that may begin a secret are kept back (`buffered`) until more bytes arrive. Output that ends with the
start of a secret is therefore delayed. Other output passes at once. `flush` returns the bytes that were kept back, at
the end of the text.

The result does not depend on how the stream was cut. At a position where the masker keeps no bytes back, a new masker
can continue with the same result. A log can therefore be resumed there. Occurrences that overlap become one `***`.

The author of an action chooses both the secrets and the output of the commands. The work per byte is bounded for every
choice: see `FormFinder`. In addition, `BUDGET` bounds the time of one call. If a call exceeds `BUDGET`, the text that
the call has not searched is hidden (`over_budget`).

Known limits: values under `SHORTEST` bytes are not masked (`too_short`). Values with more forms than `MOST_FORMS`, or
with more than `LONGEST_VALUE` bytes, are masked in part (`too_long`). A secret that a program transforms in another way
(reversed, hashed, spelled out) is not recognised.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from agent.execution.logs.forms import LONGEST_VALUE, SHORTEST, forms_of
from agent.execution.logs.sieve import FormFinder, OverBudget, Sieve, innermost

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MASK = b"***"
# Maximum number of forms of all secrets together.
MOST_FORMS = 2048
# Maximum seconds of processor time that one call of `feed` searches. A search takes at most about 2 microseconds
# per byte, so only a call with much text, or on a slow processor, needs so much time.
BUDGET = 0.1

Span = tuple[int, int]


class Masker:
    """Replaces secrets in a stream of bytes. `secrets` is a mapping of names to values, or only the values.

    Fewer than `LONGEST` bytes are kept in memory. `too_short` holds the names of the secrets that are not masked.
    `too_long` holds the names of the secrets that are masked in part. A value without a name is named by its number,
    from 0. `over_budget` becomes True when text is hidden because the search took too long.
    """

    def __init__(self, secrets: Mapping[str, str] | Iterable[bytes] = ()) -> None:
        forms: set[bytes] = set()
        short: list[str] = []
        long: list[str] = []
        for name, value in named(secrets):
            if len(value.strip()) < SHORTEST:
                short.append(name)
                continue
            complete = len(value) <= LONGEST_VALUE
            for form in forms_of(value[:LONGEST_VALUE]):
                if len(forms) >= MOST_FORMS and form not in forms:
                    complete = False
                    break
                forms.add(form)
            if not complete:
                long.append(name)
        self.too_short = tuple(short)
        self.too_long = tuple(long)
        self.over_budget = False
        self.finder = FormFinder(forms)
        self.sieve = Sieve(innermost(self.finder.forms))
        self.kept = b""
        # The last data that `passes` has searched and found to hold no secret.
        self.clean = b""
        # Size in bytes of the part of the current run (overlapping secrets) that the masker has dropped. A run may be
        # endless, so the masker keeps its size and not its bytes.
        self.run_before_kept = 0
        # Size in bytes of the part of the current run (overlapping secrets) that is still in the buffer `kept`.
        self.run_in_kept = 0

    @property
    def forms(self) -> tuple[bytes, ...]:
        """Return the forms that are masked, sorted."""
        return self.finder.forms

    @property
    def buffered(self) -> int:
        """Return the number of bytes at the end of the input for which no output was returned."""
        return self.run_before_kept + len(self.kept)

    def passes(self, data: bytes) -> bool:
        """Return whether `feed` will certainly be fast, because the data holds no secret."""
        if not self.finder.forms:
            return True
        if self.run_in_kept or self.sieve.may_match(data):
            return False
        self.clean = data
        return True

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the stream. Returns the masked text that no later byte can change."""
        if not self.finder.forms:
            return data
        text = self.kept + data if self.kept else data
        end = self.finder.partial(text)
        try:
            runs = self.runs(text)
        except OverBudget as over:
            self.over_budget = True
            runs = over.runs
            start = max(over.position, runs[-1][1] if runs else 0)
            if start < end:
                runs.append((start, end))
        return self.settle(text, runs, end)

    def settle(self, text: bytes, runs: list[Span], end: int) -> bytes:
        """Return the masked text before the position `end`, and keep the rest.

        `runs` are the places of secrets in the text. The mask of a run that ends after `end` is returned later.
        """
        open_run = next((run for run in reversed(runs) if run[0] <= end < run[1]), None)
        before = self.run_before_kept
        self.kept = text[end:]
        self.run_before_kept = self.run_in_kept = 0
        if open_run:
            first, last = open_run
            self.run_before_kept = end - first + (before if first == 0 else 0)
            if self.run_before_kept:
                self.run_in_kept = last - end
            end = first
        return masked(text[:end] if end < len(text) else text, runs)

    def flush(self, *, hide: bool = False) -> bytes:
        """Return the bytes that were kept back, masked.

        If `hide` is set, these bytes become `***`, because text that the agent never reads possibly completes a secret.
        """
        text, runs = self.kept, []
        if not hide:
            try:
                runs = self.runs(text)
            except OverBudget:
                self.over_budget = hide = True
        self.kept = b""
        self.run_before_kept = self.run_in_kept = 0
        if hide:
            return MASK if text else b""
        return masked(text, runs)

    def mask(self, text: bytes) -> bytes:
        """Mask a complete text that is not part of the log, such as an outcome's message. `BUDGET` does not apply."""
        if not self.sieve.may_match(text):
            return text
        return masked(text, list(self.finder.runs(text)))

    def runs(self, text: bytes) -> list[Span]:
        """Return the spans of the text that secrets cover, in order. Overlapping secrets form one span (a run).

        Raises:
            OverBudget: the search took too long.
        """
        clean, self.clean = self.clean, b""
        if not self.run_in_kept and (text is clean or not self.sieve.may_match(text)):
            # Nearly every text contains no secret.
            return []
        return self.finder.runs(text, self.run_in_kept, time.thread_time() + BUDGET)


def masked(text: bytes, runs: list[Span]) -> bytes:
    """Return `text` with the mask in place of each run. Runs beyond the end of the text are ignored."""
    if not runs:
        return text
    parts: list[bytes] = []
    done = 0
    for first, last in runs:
        if last > len(text):
            break
        parts += (text[done:first], MASK)
        done = last
    parts.append(text[done:])
    return b"".join(parts)


def named(secrets: Mapping[str, str] | Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the value of each secret."""
    if isinstance(secrets, Mapping):
        for name, value in secrets.items():
            yield name, value.encode("utf-8", "surrogateescape")
    else:
        for number, raw in enumerate(secrets):
            yield str(number), raw
