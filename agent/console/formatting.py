"""Sizes, times and paths as people read them. Pure; shared by every view and summary."""

from __future__ import annotations

from agent.domain.outcome import Result

RESULT_COLOURS = {Result.SUCCEEDED: "green", Result.FAILED: "red", Result.CANCELLED: "yellow"}


def amount(size: float) -> str:
    """Return bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def rate(size: float, seconds: float) -> str:
    """Return bytes per second for people, in MB as network and disks are measured."""
    return f"{size / 1e6 / max(seconds, 0.001):.1f} MB/s"


def duration(seconds: float) -> str:
    """Return a time for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def readable(path: bytes) -> str:
    """Return a path as text; what is no UTF-8 is replaced."""
    return path.decode("utf-8", "replace")


def count(number: int, what: str) -> str:
    """Return a number of things: "1 file", "2 files"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
