"""The installer's pod template over the agent's pod: the few rules of a strategic merge that a pod needs.

Pure. Mappings merge by key; lists whose items carry a name (containers, volumes, env ...) merge by name; other lists
are joined; null removes a key; anything else replaces.
"""

from __future__ import annotations

from typing import Any


def merged(base: Any, over: Any) -> Any:
    """Return `over` laid upon `base`; neither is changed."""
    if isinstance(base, dict) and isinstance(over, dict):
        result = {key: value for key, value in base.items() if not (key in over and over[key] is None)}
        for key, value in over.items():
            if value is not None:
                result[key] = merged(base[key], value) if key in base else value
        return result
    if isinstance(base, list) and isinstance(over, list):
        return merged_lists(base, over)
    return over


def merged_lists(base: list[Any], over: list[Any]) -> list[Any]:
    """Merge items of the same name, keep the order of `base`, and append what is new."""
    if not all(isinstance(item, dict) and "name" in item for item in base + over):
        return base + over
    theirs = {item["name"]: item for item in over}
    kept = [merged(item, theirs.pop(item["name"])) if item["name"] in theirs else item for item in base]
    return kept + list(theirs.values())
