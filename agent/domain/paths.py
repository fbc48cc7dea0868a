"""Functions for files that come from an action: check a path, and write all bytes to a file descriptor.

The commands of an action choose the paths of their files, so no path is trusted. The functions keep no state. The
programs of `agent.cluster.in_pod` check paths with their own functions, because they cannot import this module.
"""

from __future__ import annotations

import os

# Maximum number of bytes of a path, the same as Linux's PATH_MAX.
MAX_PATH_BYTES = 4096


def safe_components(path: bytes) -> tuple[bytes, ...]:
    """Return the components of a relative path that stays inside the folder to which it is relative.

    The check does not look at the disk. The caller must not follow symbolic links.

    Raises:
        ValueError: the path is empty, absolute or too long, contains a NUL, or has a component "", "." or "..".
    """
    components = tuple(path.split(b"/"))
    if len(path) > MAX_PATH_BYTES or b"\0" in path or any(each in (b"", b".", b"..") for each in components):
        raise ValueError(f"{path[:200]!r} is not a path within its folder")
    return components


def check_cache_path(path: str) -> None:
    """Check a path of a cache: a file or a folder of the workspace, without wildcards.

    Raises:
        ValueError: the path is not allowed. The message begins with "must".
    """
    try:
        components = safe_components(path.encode("utf-8", "surrogateescape"))
    except ValueError:
        raise ValueError(
            f"must be a path within the workspace: relative and without '..', not {path[:200]!r}"
        ) from None
    if any(sign in path for sign in "*?[\\"):
        raise ValueError(f"must be one path without wildcards, not {path[:200]!r}")
    if components[0] == b".git":
        raise ValueError("must not be in .git, because git runs programs that its settings name")


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all bytes of `data` to a descriptor. A single call of `os.write` possibly writes only a part."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
