"""Read the keys of caches: texts with placeholders, which are filled in before a cache is restored. Pure.

The placeholders are `{hash:GLOB,GLOB}` (the content of files in the workspace), `{image}`, `{arch}` and `{os}`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

# Maximum number of characters of a key after its placeholders are filled in, percent-encoded. The key is one component
# of the name of an object, and stores on a file system allow 255 bytes there.
MAX_KEY = 200
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
NAMES = ("image", "arch", "os")
HASH = "hash:"
LITERAL = re.compile(r"[A-Za-z0-9 ._=+@,:/-]*")
ALLOWED = "letters, digits, spaces and ._=+@,:/-"


def check_template(text: str) -> None:
    """Check a key that may have placeholders.

    Raises:
        ValueError: the key is empty, or has a character or a placeholder that is not allowed.
    """
    if not text.strip():
        raise ValueError("must not be empty")
    for name in PLACEHOLDER.findall(text):
        if name not in NAMES and not all(globs_of(name)):
            raise ValueError(f"{{{name}}} is no placeholder; there are {{hash:GLOB}}, {', '.join(map(braced, NAMES))}")
        if any(glob.startswith("/") or ".." in glob.split("/") for glob in globs_of(name)):
            raise ValueError(f"{{{name}}} names files outside the workspace")
    if not LITERAL.fullmatch(PLACEHOLDER.sub("", text)):
        raise ValueError(f"may have {ALLOWED} besides placeholders, not {text!r}")


def braced(name: str) -> str:
    return f"{{{name}}}"


def globs_of(name: str) -> tuple[str, ...]:
    """Return the globs of a placeholder for a hash. Any other name gives one empty text."""
    return tuple(name.removeprefix(HASH).split(",")) if name.startswith(HASH) else ("",)


def hashes_in(text: str) -> list[str]:
    """Return the names of the placeholders for hashes, such as `hash:*.lock`."""
    return [name for name in PLACEHOLDER.findall(text) if name.startswith(HASH)]


def filled_in(text: str, values: Mapping[str, str]) -> str:
    """Return the key with the values of its placeholders.

    Raises:
        ValueError: the key is too long.
    """
    found = PLACEHOLDER.sub(lambda name: values[name[1]], text)
    if (size := len(quote(found, safe=""))) > MAX_KEY:
        limit = f"at most {MAX_KEY} are allowed, and a sign such as / counts as three"
        raise ValueError(f"the key {found[:60]!r}... has {size} characters; {limit}")
    return found
