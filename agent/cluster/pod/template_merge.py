"""The installer's pod template over the agent's pod: the few rules of a strategic merge that a pod needs.

Pure. Mappings merge by key; lists of mounts merge by their path and other lists whose items carry a name (containers,
volumes, env ...) by name, as Kubernetes merges them; others are joined; null removes a key; anything else replaces.
"""

from __future__ import annotations

from typing import Any

# One volume can be mounted at several paths, so its name tells mounts not apart.
KEYS = ("mountPath", "devicePath", "name")


def merge(base: Any, over: Any) -> Any:
    """Return `over` laid upon `base`; neither is changed."""
    if isinstance(base, dict) and isinstance(over, dict):
        result = {key: value for key, value in base.items() if not (key in over and over[key] is None)}
        for key, value in over.items():
            if value is not None:
                result[key] = merge(base[key], value) if key in base else value
        return result
    if isinstance(base, list) and isinstance(over, list):
        return merge_lists(base, over)
    return over


def merge_lists(base: list[Any], over: list[Any]) -> list[Any]:
    """Merge items of the same key, keep the order of `base`, and append what is new."""
    key = next((key for key in KEYS if all(isinstance(item, dict) and key in item for item in base + over)), None)
    if key is None:
        return base + over
    theirs = {item[key]: item for item in over}
    kept = [merge(item, theirs.pop(item[key])) if item[key] in theirs else item for item in base]
    return kept + list(theirs.values())
