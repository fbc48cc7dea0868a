"""Merge the installer's pod template over the agent's pod, by the rules of a strategic merge patch.

The functions have no side effects. Only the rules that a pod needs are implemented.

Mappings merge by key. Lists of mounts merge by path, and other lists whose items have a name (containers, volumes, env)
merge by name, as Kubernetes merges them. Other lists are concatenated. null removes a key. Any other value replaces.
"""

from __future__ import annotations

from typing import Any

# Keys that identify an item of a list. The two keys with paths are tried before `name`, because one volume can be
# mounted at several paths.
KEYS = ("mountPath", "devicePath", "name")


def merge(base: Any, over: Any) -> Any:
    """Return `over` merged onto `base`. Neither argument is changed."""
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
    """Merge items with the same merge key (such as `name`), keep the order of `base`, append other items of `over`."""
    key = next((key for key in KEYS if all(isinstance(item, dict) and key in item for item in base + over)), None)
    if key is None:
        return base + over
    added = {item[key]: item for item in over}
    result = [merge(item, added.pop(item[key])) if item[key] in added else item for item in base]
    return result + list(added.values())
