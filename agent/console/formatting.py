"""Texts for people: sizes, rates, durations, paths and plurals. Pure. Every view and report uses them."""

from __future__ import annotations

from agent.domain.outcome import Result

RESULT_COLOURS = {Result.SUCCEEDED: "green", Result.FAILED: "red", Result.CANCELLED: "yellow"}


def size_text(size: float) -> str:
    """Return a number of bytes as text, as in "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def rate_text(size: float, seconds: float) -> str:
    """Return the rate of `size` bytes in `seconds` as text."""
    # The unit is MB and not MiB, because networks and disks are measured in MB/s.
    return f"{size / 1e6 / max(seconds, 0.001):.1f} MB/s"


def duration_text(seconds: float) -> str:
    """Return a duration as text, as in "59.9 s", "1 min 1 s" or "1 h 2 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def path_text(path: bytes) -> str:
    """Return a path as text. Bytes that are not UTF-8 become U+FFFD."""
    return path.decode("utf-8", "replace")


def plural(number: int, noun: str) -> str:
    """Return a number and its noun, as in "1 file" or "2 files"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
