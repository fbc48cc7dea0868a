"""Match hosts and paths with patterns, part by part: a `*` never crosses a dot of a host or a slash of a path.

Patterns come from the settings. Hosts and paths come from a scheduler. Pure functions.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Pattern that matches any number of parts (names between dots or slashes), but at least one.
ANY_PARTS = "**"


def parts_match(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether each part matches its pattern. `**` matches one part or more."""
    if not parts or not patterns:
        return not parts and not patterns
    if patterns[0] == ANY_PARTS:
        return any(parts_match(parts[count:], patterns[1:]) for count in range(1, len(parts) + 1))
    return fnmatchcase(parts[0], patterns[0]) and parts_match(parts[1:], patterns[1:])


def host_matches(host: str, pattern: str) -> bool:
    """Whether a host with an optional port matches a pattern. The host part `*` matches every host.

    A pattern without a port matches only a host without a port.
    """
    name, _, port = host.partition(":")
    name_pattern, _, port_pattern = pattern.lower().partition(":")
    if bool(port) != bool(port_pattern) or not fnmatchcase(port, port_pattern):
        return False
    return name_pattern == "*" or parts_match(name.lower().split("."), name_pattern.split("."))
