"""Searches for many forms of secrets at once, with bounded work per byte.

A `Sieve` and a `FormFinder` live as long as their `Masker`. The sieve quickly excludes a text that holds no form, which
is nearly every text. The finder finds the places of the forms in any other text. For each byte of text, the work of
sieve and finder is bounded.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

from agent.execution.logs.forms import LONGEST, SHORTEST

if TYPE_CHECKING:
    from collections.abc import Iterable

# Number of bytes in a word, the unit in which a text is sampled.
WORD = 8
# Number of bytes from which a needle (a form of a secret) counts as long. If at least `SIEVED_COUNT` needles are long,
# sampling the text is faster than a search for each needle (measured).
SIEVED_FROM = 23
SIEVED_COUNT = 16
# Maximum number of words from one sample to the next. A larger step would need more memory for the words of each
# needle.
LARGEST_STEP = 8
# Maximum number of needles (forms of secrets) that are searched one by one. With more such needles, `Sieve.may_match`
# returns True for every text.
MOST_SINGLES = 32
# Number of positions in a text that the search examines between two readings of the clock.
CLOCK_STEPS = 256

Span = tuple[int, int]


class Sieve:
    """Decides whether a text possibly holds one of the needles (the forms of secrets).

    A sieve never misses a needle, and rarely reports a needle that is not in the text.

    A few short needles are searched one by one. Many long needles share one pass, which looks at every `step`-th word
    of the text. An occurrence of a needle covers at least one of these words, at one of the needle's first offsets. All
    words at these offsets are in `words`.
    """

    def __init__(self, needles: tuple[bytes, ...]) -> None:
        long = {needle for needle in needles if len(needle) >= SIEVED_FROM}
        if len(long) < SIEVED_COUNT:
            long = set()
        self.singles = tuple(needle for needle in needles if needle not in long)
        self.useless = len(self.singles) > MOST_SINGLES
        self.step = min((min(map(len, long)) - WORD + 1) // WORD, LARGEST_STEP) if long else 0
        self.words = {
            memoryview(needle[offset : offset + WORD]).cast("Q")[0]
            for needle in (() if self.useless else long)
            for offset in range(self.step * WORD)
        }

    def may_match(self, text: bytes) -> bool:
        """Return True if a needle is in the text. In rare cases, return True although no needle is in the text."""
        if self.useless or any(needle in text for needle in self.singles):
            return True
        if not self.words:
            return False
        words = memoryview(text)[: len(text) // WORD * WORD].cast("Q")
        return not self.words.isdisjoint(words[:: self.step])


def innermost(forms: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Return the forms that contain no other form. A text without any of the returned forms contains no form at all."""
    if len(forms) > LONGEST:
        return forms
    return tuple(form for form in forms if not any(other in form for other in forms if other is not form))


class OverBudget(Exception):
    """The search took too long. `runs` were found before `position`."""

    def __init__(self, runs: list[Span], position: int) -> None:
        super().__init__()
        self.runs = runs
        self.position = position


class FormFinder:
    """Finds runs of overlapping occurrences of forms, and the beginning of a form at the end of a text.

    The work per byte depends on `LONGEST` and on the logarithm of the number of forms alone, never on how often forms
    match. `steps` counts the positions that were searched, for tests. `steps` never exceeds the number of bytes of the
    texts by more than `LONGEST` per call.

    Only the longest form at a position matters for the runs, and one binary search in the sorted forms finds it. The
    search returns the largest form that is not greater than the text at the position. If this form is no prefix of the
    text, all forms that are prefixes of the text are also prefixes of this form (`prefixes`). For a form that overlaps
    itself ("aaaa"), a regular expression finds the end of the repetitions. Positions from which no form reaches beyond
    a run are skipped.
    """

    def __init__(self, forms: Iterable[bytes]) -> None:
        self.forms = tuple(sorted(forms))
        self.longest = max(map(len, self.forms), default=0)
        self.heads = frozenset(form[:SHORTEST] for form in self.forms)
        self.stubs = frozenset(head[:size] for head in self.heads for size in range(1, SHORTEST))
        self.head = re.compile(
            b"".join(charset({head[at] for head in self.heads}) for at in range(SHORTEST)), re.DOTALL
        )
        self.prefixes = prefix_lengths(self.forms)
        self.repetitions: dict[bytes, re.Pattern[bytes] | None] = {}
        self.steps = 0

    def runs(self, text: bytes, covered: int = 0, deadline: float = 0.0) -> list[Span]:
        """Return the spans of the text that secrets cover, in order. Overlapping secrets form one span (a run).

        The first `covered` bytes belong to a run that began before the text.

        Raises:
            OverBudget: the processor time of the thread has passed `deadline`. If `deadline` is 0, there is no limit.
        """
        runs: list[Span] = [(0, covered)] if covered else []
        start, end = 0, covered
        next_look = self.steps + CLOCK_STEPS
        position = 0
        while head := self.head.search(text, position):
            self.steps += 1
            if deadline and self.steps >= next_look:
                next_look = self.steps + CLOCK_STEPS
                if time.thread_time() > deadline:
                    raise OverBudget(runs, position)
            position = head.start()
            form = self.longest_at(text, position)
            if not form:
                position += 1
                continue
            last = self.end_of_repetitions(text, position, form)
            if position >= end:
                start, end = position, last
                runs.append((start, end))
            elif last > end:
                end = last
                runs[-1] = (start, end)
            position = max(position + 1, end - self.longest + 1)
        return runs

    def longest_at(self, text: bytes, position: int) -> bytes:
        """Return the longest form of a secret that starts at `position` in the text, b"" if none."""
        if text[position : position + SHORTEST] not in self.heads:
            return b""
        window = text[position : position + self.longest]
        index = bisect_right(self.forms, window) - 1
        if index < 0:
            return b""
        form = self.forms[index]
        if window.startswith(form):
            return form
        lengths = self.prefixes[index]
        found = bisect_left(lengths, True, key=lambda length: not window.startswith(form[:length]))
        return form[: lengths[found - 1]] if found else b""

    def end_of_repetitions(self, text: bytes, position: int, form: bytes) -> int:
        """Return the end of a run of overlapping occurrences of `form`. The first occurrence starts at `position`.

        Only occurrences at the shortest distance at which two occurrences can overlap belong to the run.
        """
        end = position + len(form)
        if form not in self.repetitions:
            period = shortest_period(form)
            again = re.compile(b"(?:" + re.escape(form[-period:]) + b")*+") if period < len(form) else None
            self.repetitions[form] = again
        repetition = self.repetitions[form]
        match = repetition.match(text, end) if repetition else None
        return match.end() if match else end

    def partial(self, text: bytes) -> int:
        """Return the first index from which the rest of the text is the beginning of a form.

        Return the length of the text if there is no such index.
        """
        size = len(text)
        position = max(0, size - self.longest + 1)
        while head := self.head.search(text, position):
            self.steps += 1
            position = head.start()
            if text[position : position + SHORTEST] in self.heads:
                rest = text[position:]
                index = bisect_right(self.forms, rest)
                if index < len(self.forms) and self.forms[index].startswith(rest):
                    return position
            position += 1
        for index in range(max(0, size - SHORTEST + 1), size):
            if text[index:] in self.stubs:
                return index
        return size


def charset(values: set[int]) -> bytes:
    """Return a regular expression for one byte of the given values."""
    return b"[" + b"".join(rb"\x%02x" % value for value in sorted(values)) + b"]" if values else b"(?!)"


def prefix_lengths(forms: tuple[bytes, ...]) -> tuple[tuple[int, ...], ...]:
    """Return for each of the sorted forms the lengths of the other forms that are its prefixes."""
    result: list[tuple[int, ...]] = []
    stack: list[bytes] = []
    for form in forms:
        while stack and not form.startswith(stack[-1]):
            stack.pop()
        result.append(tuple(map(len, stack)))
        stack.append(form)
    return tuple(result)


def shortest_period(form: bytes) -> int:
    """Return the smallest number of bytes between the starts of two overlapping occurrences of the form.

    Return the length of the form if two occurrences cannot overlap.
    """
    borders = [0] * len(form)
    size = 0
    for index in range(1, len(form)):
        while size and form[index] != form[size]:
            size = borders[size - 1]
        size += form[index] == form[size]
        borders[index] = size
    return len(form) - size
