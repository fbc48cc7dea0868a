"""Parsing of quantities and durations, and the texts that the parsers refuse."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from agent.domain.quantities import quantity, seconds


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("2", "2"),
        ("0.5", "0.5"),
        ("500m", "0.5"),
        ("100n", "0.0000001"),
        ("1k", "1000"),
        ("1Ki", "1024"),
        ("64Mi", "67108864"),
        ("1.5Gi", "1610612736"),
        ("1G", "1000000000"),
        ("2Pi", "2251799813685248"),
    ],
)
def test_quantities(text: str, number: str) -> None:
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize(
    "text", ["", "-1", "1 Gi", "1gi", "1GiB", "Gi", "1e3", "1.", ".5", "0x10", "1\n", "٣", "1" * 19, "1,5"]
)
def test_a_malformed_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity such as"):
        quantity(text)


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (0, 0),
        (30, 30),
        (0.25, 0.25),
        ("30", 30),
        (" 1.5 ", 1.5),
        ("90s", 90),
        ("10m", 600),
        ("1h30m", 5400),
        ("1d", 86400),
        ("1d1h1m1.5s", 90061.5),
    ],
)
def test_durations(value: str | float, number: float) -> None:
    assert seconds(value) == number


@pytest.mark.parametrize(
    "value",
    ["", " ", "s", "-5s", "5x", "1m1h", "1 m", "inf", "nan", True, None, [], -1, float("nan"), float("inf")],
)
def test_a_malformed_duration_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(value)
