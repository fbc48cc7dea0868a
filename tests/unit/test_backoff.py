"""The pauses between tries of a failing operation: their upper bound, random spread, and reset after a success."""

from __future__ import annotations

import pytest

from agent.backoff import Backoff

BOUNDS = [0.5, 1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("least_share", [0.0, 0.5])
def test_pauses_are_spread_under_a_bound_that_doubles(least_share: float) -> None:
    rows = []
    for _ in range(200):
        backoff = Backoff(0.5, 30.0, least_share=least_share)
        rows.append([backoff.next() for _ in BOUNDS])
    for bound, column in zip(BOUNDS, zip(*rows, strict=True), strict=True):
        low = least_share * bound
        assert low <= min(column) < low + (bound - low) / 4
        assert bound - (bound - low) / 4 < max(column) <= bound


def test_the_pause_stays_bounded_after_thousands_of_failures() -> None:
    backoff = Backoff(0.5, 30.0)
    too_long = [pause for pause in (backoff.next() for _ in range(5000)) if pause > 30.0]
    assert too_long == []
    assert backoff.failures == 5000


def test_a_bound_below_the_first_pause_limits_the_first_pause() -> None:
    assert Backoff(0.5, 0.02).next() <= 0.02


def test_a_reset_starts_with_the_first_bound_again() -> None:
    backoff = Backoff(0.5, 30.0)
    for _ in range(10):
        backoff.next()
    backoff.reset()
    assert backoff.failures == 0
    assert backoff.next() <= 0.5
