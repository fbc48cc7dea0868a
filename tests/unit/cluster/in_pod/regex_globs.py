"""Translate globs to regular expressions. The tests compare the agent's own glob matcher with these expressions.

The agent does not translate a whole glob, because matching such an expression backtracks. In the tests, the expressions
show in few lines what a glob means.
"""

from __future__ import annotations

import re

from agent.glob import split_glob


def translate(glob: str) -> str:
    """Return a regular expression that matches whole paths relative to the workspace.

    `*` and `?` do not match a slash, `**` does, `[...]` is a set. A glob that matches a folder matches all files in it.
    """
    parts = split_glob(glob)
    regex = ""
    for index, part in enumerate(parts, 1):
        if part != "**":
            regex += translate_component(part) + ("/" if index < len(parts) else "")
        else:
            regex += "(?:.+/)?" if index < len(parts) else ".+"
    return (regex or ".+") + ("/.+" if parts and glob.endswith("/") else "(?:/.+)?")


def translate_component(part: str) -> str:
    """Return a regular expression for `part`, the text between two slashes of a glob."""
    regex, at = "", 0
    while at < len(part):
        sign = part[at]
        at += 1
        # The set `[...]` of a glob has at least one character, which may be `]` itself, as in `[]a]`.
        close = part.find("]", at + (2 if part[at : at + 1] in ("!", "^") else 1)) if sign == "[" else -1
        if sign == "*":
            regex += "[^/]*"
        elif sign == "?":
            regex += "[^/]"
        elif close > 0:
            negated = part[at] in "!^"
            inner = part[at + negated : close].replace("\\", "\\\\")
            for special in "[]^&~|":
                inner = inner.replace(special, "\\" + special)
            regex += "(?!/)[" + "^" * negated + inner + "]"
            at = close + 1
        else:
            if sign == "\\" and at < len(part):
                sign = part[at]
                at += 1
            regex += re.escape(sign)
    return regex


def regexes(globs: list[str]) -> list[re.Pattern[str]]:
    """Return a pattern for each glob, in order. An invalid glob matches its own text literally."""
    if not globs:
        return []
    patterns = []
    for glob in globs:
        try:
            patterns.append(re.compile(translate(glob), re.DOTALL))
        except re.error:
            patterns.append(re.compile(re.escape(glob)))
    return patterns
