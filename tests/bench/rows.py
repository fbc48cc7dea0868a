"""A row of the benchmark's table: one measured number with its baseline and its target.

The baseline (`floor`) is the same measurement of a plain tool such as kubectl, or of one replica. Absolute times hold
for one machine only. Ratios to a baseline can be compared between machines, because both numbers are measured in turn
in the same run. A row lives as long as a run of `make bench`.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One row of the table. `floor`, the baseline, and `measured` are medians in `unit`.

    `spread` is the interquartile range divided by the median. The target applies to `ratio`, or to `measured` if there
    is no baseline and `ratio` is None. `met` is None if there is no target.
    """

    what: str
    unit: str
    target: str
    floor: float | None
    measured: float
    spread: float
    ratio: float | None
    met: bool | None
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the row, as `bench.json` contains them."""
        return asdict(self)


def row(
    what: str,
    unit: str,
    measured: Sequence[float],
    *,
    floor: Sequence[float] = (),
    target: str = "",
    inverse: bool = False,
    note: str = "",
) -> Row:
    """Make a row from samples. Each sample of the baseline `floor` forms a pair with one sample of `measured`.

    The ratio is the median of measured / floor over the pairs, or of floor / measured if `inverse` is true. The target
    is "<= X", ">= X" or "". The target applies to the ratio, or to the median of `measured` if there is no baseline.
    """
    middle = statistics.median(measured)
    ratio = None
    if floor:
        pairs = zip(measured, floor, strict=True)
        ratio = statistics.median(base / own if inverse else own / base for own, base in pairs)
    low = statistics.median(floor) if floor else None
    met = holds(target, middle if ratio is None else ratio)
    return Row(what, unit, target, low, middle, spread(measured), ratio, met, note)


def holds(target: str, value: float) -> bool | None:
    """Return whether `value` meets a target such as "<= 50". Return None if the target is empty."""
    if not target:
        return None
    sign, limit = target.split()[:2]
    return value <= float(limit) if sign == "<=" else value >= float(limit)


def spread(samples: Sequence[float]) -> float:
    """Return the interquartile range of the samples divided by their median. Return 0 for fewer than two samples."""
    if len(samples) < 2 or not (middle := statistics.median(samples)):
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / abs(middle)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return the percentile `percent` (1 to 99) of the samples."""
    if len(samples) < 2:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]
