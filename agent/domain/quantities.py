"""Read Kubernetes quantities and durations as numbers.

The policy compares the quantities that an action requests with maximum values. Settings and pipeline files contain
durations. Pure functions.
"""

from __future__ import annotations

import re
from decimal import Decimal

SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
}
QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)(n|u|m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", re.ASCII)
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)

# The longest duration, 100 years. Clocks and messages of gRPC hold it.
MAX_SECONDS = 36_500 * 86_400
# Number of characters of a duration at most.
MAX_DIGITS = 100


def quantity(text: str) -> Decimal:
    """Return the number of a Kubernetes quantity such as "500m" or "1.5Gi".

    Raises:
        ValueError: the text is no quantity. The message shows what is allowed.
    """
    match = QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a quantity such as "500m", "2" or "1Gi"')
    return Decimal(match[1]) * SUFFIXES[match[2] or ""]


def seconds(value: str | int | float) -> float:
    """Return a duration in seconds. `value` is a number of seconds, or text such as "90s", "10m" or "1h30m".

    Raises:
        ValueError: the value is no duration. The message shows what is allowed.
    """
    length = unbounded_seconds(value)
    if length > MAX_SECONDS:
        raise ValueError(f"{str(value)[:40]!r} is too long: a duration is at most {MAX_SECONDS // 86400} days")
    return length


def unbounded_seconds(value: str | int | float) -> float:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'{value!r} is not a duration such as 30, "90s", "10m" or "1h30m"')
    if isinstance(value, str):
        text = value.strip()
        if len(text) > MAX_DIGITS:
            raise ValueError(f"{text[:40]!r}... is not a duration: it has more than {MAX_DIGITS} characters")
        if re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            return float(text)
        match = DURATION.fullmatch(text)
        if not text or match is None:
            raise ValueError(f'{value!r} is not a duration such as "90s", "10m" or "1h30m"')
        days, hours, minutes, rest = (float(group or 0) for group in match.groups())
        return days * 86400 + hours * 3600 + minutes * 60 + rest
    if value < 0 or value != value or value == float("inf"):
        raise ValueError(f"{value!r} is not a duration: it must be a number of seconds from 0 on")
    return float(value)
