"""How many warm pods a pool wants, by the actions that arrive."""

from __future__ import annotations

from agent.cluster.warm.demand import RATE_SECONDS, Demand


def arrivals(count: int, every: float, refill: float = 5.0) -> tuple[Demand, float]:
    """Return the demand after `count` arrivals, and the time of the last one."""
    demand, now = Demand(0.0), 0.0
    demand.refill_seconds = refill
    for _ in range(count):
        now += every
        demand.arrived(now)
    return demand, now


def test_without_actions_a_pool_keeps_its_minimum() -> None:
    assert Demand(0.0).wanted(5.0, 2, 10, 600.0) == 2
    assert Demand(0.0).wanted(5.0, 0, 10, 600.0) == 0


def test_a_pool_grows_with_the_rate_and_with_the_time_to_replace_a_pod() -> None:
    for every, refill, expected in ((60.0, 5.0, 2), (1.25, 5.0, 6), (1.0, 20.0, 10), (0.01, 5.0, 10)):
        demand, now = arrivals(2000, every, refill)
        assert demand.wanted(now, 1, 10, 600.0) == expected, (every, refill)


def test_a_pool_falls_back_to_its_minimum_after_a_while() -> None:
    demand, now = arrivals(1000, 0.5)
    assert demand.wanted(now, 1, 10, 600.0) == 10
    assert demand.wanted(now + 3 * RATE_SECONDS, 1, 10, 600.0) == 2
    assert demand.wanted(now + 601.0, 1, 10, 600.0) == 1


def test_the_time_to_replace_a_pod_follows_the_measurements() -> None:
    demand = Demand(0.0)
    for _ in range(30):
        demand.refilled(40.0)
    assert 39.0 < demand.refill_seconds <= 40.0
