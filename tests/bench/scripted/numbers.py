"""Medians and spreads, and rows of one value."""

from __future__ import annotations

from statistics import median, quantiles
from typing import TYPE_CHECKING

from tests.bench.rows import Row

if TYPE_CHECKING:
    from collections.abc import Sequence


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return (high - low) / (median(values) or 1.0)


def at_least(what: str, unit: str, limit: float, values: Sequence[float], note: str = "") -> Row:
    """Return a row whose median shall not be less than a limit."""
    found = median(values)
    return Row(what, unit, f">= {limit:g}", None, found, spread(values), None, found >= limit, note)


def at_most(what: str, unit: str, limit: float, values: Sequence[float], note: str = "") -> Row:
    """Return a row whose median shall not be more than a limit."""
    found = median(values)
    return Row(what, unit, f"<= {limit:g}", None, found, spread(values), None, found <= limit, note)


def plain(what: str, unit: str, values: Sequence[float], note: str = "") -> Row:
    """Return a row without a target."""
    return Row(what, unit, "", None, median(values), spread(values), None, None, note)
