"""Texts for people: sizes, rates, durations, paths and plurals, and the styled texts that rich prints.

Every view and report uses these functions, which have no side effects. No other module makes a `Text`, so no text
reaches a terminal without passing `terminal_text`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from rich.text import Text

from agent.console import terminal_text
from agent.domain.outcome import Outcome, Result

RESULT_COLOURS = {Result.SUCCEEDED: "green", Result.FAILED: "red", Result.CANCELLED: "yellow"}
# How a person reads whose fault an outcome is, by `Reason.fault`.
FAULTS = {"user": "the user's fault", "infrastructure": "the infrastructure's fault"}


def fault_text(outcome: Outcome | None) -> str:
    """Return whose fault an outcome is, after a comma. Empty for success and cancellation."""
    fault = outcome.reason.fault if outcome is not None and outcome.reason is not None else ""
    return f", {FAULTS[fault]}" if fault else ""


def first_line(command: str) -> str:
    """Return the first line of a command, with dots if the command has more lines."""
    first, *rest = terminal_text.lines(command.strip()) or [""]
    return f"{first}{' ...' if rest else ''}"


def size_text(size: float) -> str:
    """Return a number of bytes as text, as in "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def clock_text(seconds: float) -> str:
    """Return the local time of day of a number of seconds since the epoch, with milliseconds, as in "09:05:01.250"."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%H:%M:%S.%f}"[:-3]
    except (ValueError, OverflowError, OSError):
        # A scheduler elsewhere chooses the number.
        return "--:--:--.---"


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


def styled(*parts: str | tuple[str, str] | Text, style: str = "") -> Text:
    """Return a text on one line, without control characters. A part is a text, or a text with its style."""
    cleaned: list[str | tuple[str, str] | Text] = []
    for part in parts:
        if isinstance(part, str):
            cleaned.append(terminal_text.one_line(part))
        elif isinstance(part, tuple):
            cleaned.append((terminal_text.one_line(part[0]), part[1]))
        else:
            cleaned.append(part)
    return Text.assemble(*cleaned, style=style)


def styled_log(line: str, style: str = "") -> Text:
    """Return a line of a log with its colours."""
    return Text.from_ansi(terminal_text.log_line(line).expandtabs(), style=style)


def path_text(path: bytes) -> str:
    """Return a path as text, for programs. Bytes that are not UTF-8 become U+FFFD."""
    return path.decode("utf-8", "replace")


def shown_path(path: bytes) -> str:
    """Return a path for people: quoted as `ls` does if it holds control characters."""
    return terminal_text.quoted(path_text(path))


def plural(number: int, noun: str) -> str:
    """Return a number and its noun, as in "1 file" or "2 files"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
