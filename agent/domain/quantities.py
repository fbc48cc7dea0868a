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
# Maximum number of seconds of a duration: a hundred years. Clocks and Kubernetes fields cannot hold much more.
MAX_SECONDS = 100 * 365.25 * 86400
# Maximum number of characters of a duration that is given as text.
MAX_DURATION_TEXT = 100
QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,9})?)(n|u|m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?", re.ASCII)
# Smallest quantities that a container starts with. runc needs 6 MiB of memory, and Kubernetes rounds CPU to 1m.
# Kubernetes reads 0 as "no limit", so a maximum would not hold for a quantity of 0.
MINIMA = {"cpu": "1m", "memory": "6Mi", "ephemeral-storage": "1Mi"}
DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def quantity(text: str) -> Decimal:
    """Return the number of a Kubernetes quantity such as "500m" or "1.5Gi".

    Raises:
        ValueError: the text is no quantity. The message shows what is allowed.
    """
    match = QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a quantity such as "500m", "2" or "1Gi"')
    return Decimal(match[1]) * SUFFIXES[match[2] or ""]


def resource_quantity(resource: str, text: str) -> Decimal:
    """Return the number of a quantity of a resource. `resource` is a key of `MINIMA`.

    Raises:
        ValueError: the text is no quantity, or is below the minimum of the resource.
    """
    number = quantity(text)
    if number < quantity(MINIMA[resource]):
        raise ValueError(f"{text} is below the minimum of {MINIMA[resource]}")
    return number


def seconds(value: str | int | float) -> float:
    """Return a duration in seconds. `value` is a number of seconds, or text such as "90s", "10m" or "1h30m".

    Raises:
        ValueError: the value is no duration, or longer than a hundred years. The message shows what is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f'{value!r} is not a duration such as 30, "90s", "10m" or "1h30m"')
    number = seconds_of_text(value) if isinstance(value, str) else value
    if number < 0 or number != number:
        raise ValueError(f"{value!r} is not a duration: it must be a number of seconds from 0 on")
    if number > MAX_SECONDS:
        text = str(value) if isinstance(value, (str, float)) else "the number"
        raise ValueError(f"{text[:50]} is not a duration: the longest is 36525d")
    return float(number)


def seconds_of_text(value: str) -> float:
    text = value.strip()
    # A text of more than `MAX_DURATION_TEXT` characters is no duration. Its numbers could be too large for a float.
    match = DURATION.fullmatch(text) if len(text) <= MAX_DURATION_TEXT else None
    if len(text) <= MAX_DURATION_TEXT and re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return float(text)
    if not text or match is None:
        raise ValueError(f'{value[:50]!r} is not a duration such as "90s", "10m" or "1h30m"')
    days, hours, minutes, rest = (float(group or 0) for group in match.groups())
    return days * 86400 + hours * 3600 + minutes * 60 + rest
