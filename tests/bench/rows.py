"""What a benchmark found, beside its floor and its target: one row of the table.

A row lives as long as a run of `make bench`. Timings of a machine do not travel; ratios to a floor that was measured in
the same run, interleaved, do.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Row:
    """One figure. `floor` and `measured` are medians in `unit`; `spread` is the interquartile range over the median.

    `ratio` is what the target speaks of; without a floor it is None and the target speaks of `measured`. `met` is None
    where there is no target.
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
        """Return it for the file of results."""
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
    """Make a row of samples; `floor` pairs with `measured` sample by sample.

    The ratio is the median over the pairs of measured / floor, or with `inverse` of floor / measured (times that stand
    for speeds). The target is "<= X", ">= X" or "" and is held against the ratio, or `measured` without a floor.
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
    """Say whether a value meets a target; None without one."""
    if not target:
        return None
    sign, limit = target.split()[:2]
    return value <= float(limit) if sign == "<=" else value >= float(limit)


def spread(samples: Sequence[float]) -> float:
    """Return the interquartile range of samples as a part of their median."""
    if len(samples) < 2 or not (middle := statistics.median(samples)):
        return 0.0
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return (high - low) / abs(middle)


def percentile(samples: Sequence[float], percent: int) -> float:
    """Return a percentile of samples."""
    if len(samples) < 2:
        return samples[0]
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]
