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


def parts_match(parts: Sequence[str], patterns: Sequence[str], *, beginning: bool = False) -> bool:
    """Whether each part matches its pattern. `**` matches one part or more.

    If `beginning` is set, further parts may follow the parts that match. The work grows with the number of parts times
    the number of patterns.
    """
    # A state is the number of patterns that match the parts so far. `**` makes several states possible.
    end, states = len(patterns), {0}
    for part in parts:
        if beginning and end in states:
            return True
        states = {after for state in states if state < end for after in states_after(state, part, patterns)}
        if not states:
            return False
    return end in states


def states_after(state: int, part: str, patterns: Sequence[str]) -> tuple[int, ...]:
    """Return the possible states after `part`. A state is a number of matched patterns, `state` that before `part`."""
    if patterns[state] == ANY_PARTS:
        return (state, state + 1)
    return (state + 1,) if fnmatchcase(part, patterns[state]) else ()


def host_matches(host: str, pattern: str) -> bool:
    """Whether a host with an optional port matches a pattern. The host part `*` matches every host.

    A pattern without a port matches only a host without a port.
    """
    name, _, port = host.partition(":")
    name_pattern, _, port_pattern = pattern.lower().partition(":")
    if bool(port) != bool(port_pattern) or not fnmatchcase(port, port_pattern):
        return False
    return name_pattern == "*" or parts_match(name.lower().split("."), name_pattern.split("."))
