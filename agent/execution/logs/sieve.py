"""Quick search for many secrets at once: may a text hold one of them?

A `Sieve` lives as long as its `Masker`. Searching a text costs one pass per secret, and a private key has hundreds of
forms. Nearly all text holds no secret. For such text one quick pass replaces the passes for all forms.
"""

from __future__ import annotations

# Number of bytes in a word, the unit in which a text is sampled.
WORD = 8
# Minimum length and minimum number of needles for which sampling is faster than a search for each needle (measured).
SIEVED_FROM = 23
SIEVED_COUNT = 16


class Sieve:
    """Decides whether a text may hold one of the needles (the forms of secrets).

    It never misses a needle, and rarely reports a needle that is not in the text.

    A few short needles are searched one by one. Many long needles share one pass, which looks at every `step`-th word
    of the text. An occurrence of a needle covers at least one of these words, at one of the needle's first offsets. All
    words at these offsets are in `words`.
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

    def may_match(self, text: bytes) -> bool:
        """Return False if no needle is in the text."""
        if any(needle in text for needle in self.singles):
            return True
        if not self.words:
            return False
        words = memoryview(text)[: len(text) // WORD * WORD].cast("Q")
        return not self.words.isdisjoint(words[:: self.step])
