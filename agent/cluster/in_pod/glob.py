"""Which paths a glob names. All globs are relative to the workspace, as in GitLab's `artifacts:paths`.

Runs inside container `files` (see `workspace`), on Python 3.9 and its standard library.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re


def components(glob: str) -> list[str]:
    """Return what stands between the slashes of GLOB."""
    return [part for part in glob.split("/") if part not in ("", ".")]


def translate(glob: str) -> str:
    """Turn a glob into a regular expression for whole paths relative to the workspace.

    `*` and `?` stop at a slash, `**` does not, `[...]` is a set; what names a folder stands for all in it.
    """
    parts = components(glob)
    made = ""
    for index, part in enumerate(parts, 1):
        if part != "**":
            made += translate_component(part) + ("/" if index < len(parts) else "")
        else:
            made += "(?:.+/)?" if index < len(parts) else ".+"
    return (made or ".+") + ("/.+" if parts and glob.endswith("/") else "(?:/.+)?")


def translate_component(part: str) -> str:
    """Translate what stands between two slashes."""
    import re

    made, at = "", 0
    while at < len(part):
        sign = part[at]
        at += 1
        # A set holds at least one character, which may be the closing bracket itself.
        close = part.find("]", at + (2 if part[at : at + 1] in ("!", "^") else 1)) if sign == "[" else -1
        if sign == "*":
            made += "[^/]*"
        elif sign == "?":
            made += "[^/]"
        elif close > 0:
            negated = part[at] in "!^"
            inner = part[at + negated : close].replace("\\", "\\\\")
            for special in "[]^&~|":
                inner = inner.replace(special, "\\" + special)
            made += "(?!/)[" + "^" * negated + inner + "]"
            at = close + 1
        else:
            if sign == "\\" and at < len(part):
                sign = part[at]
                at += 1
            made += re.escape(sign)
    return made


def compiled(globs: list[str]) -> list[re.Pattern[str]]:
    """Compile GLOBS, in their order; what makes no sense as a glob is taken by the letter."""
    if not globs:
        return []
    import re  # as slow to import as Python is to start, and the default set needs no globs

    patterns = []
    for glob in globs:
        try:
            patterns.append(re.compile(translate(glob), re.DOTALL))
        except re.error:
            patterns.append(re.compile(re.escape(glob)))
    return patterns


def first_folders(glob: str) -> list[re.Pattern[str]]:
    """Return what the folders on the way to a match look like, as far as GLOB says it one by one."""
    parts = components(glob)
    return compiled(parts[: parts.index("**")] if "**" in parts else parts)
