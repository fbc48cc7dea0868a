"""Match paths against globs. Globs are relative to the workspace, as in GitLab's `artifacts:paths`.

`*` and `?` do not match a slash, `**` does, `[...]` is a set. A glob that matches a folder matches all files in it.
Paths and globs come from users, so a match must not backtrack: its time grows with the length of the path times the
length of the glob.

Container `helper` runs this module too (see `agent.cluster.in_pod`). So it needs Python 3.9 and the standard library
only.
"""

from __future__ import annotations


def split_glob(glob: str) -> list[str]:
    """Return the components of GLOB, without empty components and "."."""
    return [part for part in glob.split("/") if part not in ("", ".")]


class Component:
    """One component of a glob.

    Each piece between stars has a fixed length. So the leftmost match of a piece suffices, without backtracking.
    """

    def __init__(self, part: str) -> None:
        import re  # importing `re` takes as long as Python's start, and a collection without paths needs no globs

        self.pieces = [(re.compile(regex, re.DOTALL), length) for regex, length in translate_pieces(part)]

    def matches(self, name: str) -> bool:
        """Return whether the component matches NAME, one component of a path."""
        (first, at), *middle = self.pieces
        if not middle:
            return first.fullmatch(name) is not None
        if not first.match(name):
            return False
        last, length = middle.pop()
        for piece, _ in middle:
            found = piece.search(name, at)
            if not found:
                return False
            at = found.end()
        start = len(name) - length
        return start >= at and last.fullmatch(name, start) is not None


def translate_pieces(part: str) -> list[tuple[str, int]]:
    """Return a regular expression and a length in characters for each piece between the stars of PART.

    PART is one component of a glob.
    """
    import re

    pieces, at = [("", 0)], 0
    while at < len(part):
        sign = part[at]
        at += 1
        # A set `[...]` has at least one character, which may be the closing bracket itself.
        close = part.find("]", at + (2 if part[at : at + 1] in ("!", "^") else 1)) if sign == "[" else -1
        if sign == "*":
            pieces.append(("", 0))
            continue
        if sign == "?":
            regex = "."
        elif close > 0:
            negated = part[at] in "!^"
            inner = part[at + negated : close].replace("\\", "\\\\")
            for special in "[]^&~|":
                inner = inner.replace(special, "\\" + special)
            regex = "[" + "^" * negated + inner + "]"
            at = close + 1
        else:
            if sign == "\\" and at < len(part):
                sign = part[at]
                at += 1
            regex = re.escape(sign)
        pieces[-1] = (pieces[-1][0] + regex, pieces[-1][1] + 1)
    return pieces


class Glob:
    """One glob. An invalid glob matches its own text literally."""

    def __init__(self, glob: str) -> None:
        import re

        self.parts: list[Component | None] = []  # None stands for `**`
        self.only_below = glob.endswith("/")
        self.literal: str | None = None
        try:
            self.parts = [None if part == "**" else Component(part) for part in split_glob(glob)]
        except re.error:
            self.literal = glob

    def matches(self, names: list[str]) -> bool:
        """Return whether the glob matches the path with the components NAMES, or a folder above it."""
        if self.literal is not None:
            return "/".join(names) == self.literal
        if not self.parts:
            return True
        if self.only_below:
            names = names[:-1]
        # A state is the number of the glob's parts that match the components so far. `**` makes several states
        # possible.
        end, states = len(self.parts), {0}
        for name in names:
            states = self.advance(states, name)
            if end in states:
                return True
            if not states:
                return False
        return False

    def advance(self, states: set[int], name: str) -> set[int]:
        """Return the states after NAME, the next component of the path. A state is a number of matched parts."""
        after = set()
        for state in states:
            # `**` can match zero components, so the part after it is tried too. A `**` at the end matches one component
            # or more.
            while self.parts[state] is None and state + 1 < len(self.parts):
                after.add(state)
                state += 1
            part = self.parts[state]
            if part is None or part.matches(name):
                after.add(state + 1)
        return after


def compile_globs(globs: list[str]) -> list[Glob]:
    """Return the globs, ready to match, in order."""
    return [Glob(glob) for glob in globs]


def compile_folders(glob: str) -> list[Glob]:
    """Return one glob for each component of GLOB before the first `**`. They match the folders on the way to a file."""
    parts = split_glob(glob)
    return compile_globs(parts[: parts.index("**")] if "**" in parts else parts)
