"""How long the agent waits before it dials again."""

from __future__ import annotations

from agent.domain.errors import Refused
from agent.scheduler.stream.channel import Broken
from agent.scheduler.stream.connection import Backoff, Identity

UNAVAILABLE = Broken("unavailable", "away")


def test_waits_are_spread_under_a_bound_that_doubles_up_to_the_longest() -> None:
    bounds = [0.5, 1, 2, 4, 8, 16, 30, 30]
    waits = []
    for _ in range(200):
        backoff = Backoff(30.0)
        waits.append([backoff.after(UNAVAILABLE) for _ in bounds])
    for position, bound in enumerate(bounds):
        column = [row[position] for row in waits]
        assert max(column) <= bound
        assert min(column) < bound / 4, "no jitter"
        assert max(column) > bound * 3 / 4, "the bound does not grow"


def test_it_can_wait_for_ever() -> None:
    backoff = Backoff(30.0)
    assert all(backoff.after(UNAVAILABLE) <= 30.0 for _ in range(5000))


def test_after_a_stable_stream_it_begins_again() -> None:
    backoff = Backoff(30.0)
    for _ in range(10):
        backoff.after(UNAVAILABLE)
    backoff.reset()
    assert backoff.after(UNAVAILABLE) <= 0.5


def test_who_is_not_trusted_waits_the_longest_from_the_first_try() -> None:
    assert 24.0 <= Backoff(30.0).after(Broken("unauthenticated", "expired")) <= 30.0


def test_a_refusal_is_waited_out_as_long_as_was_said() -> None:
    assert Backoff(30.0).after(Refused("later", retry_after=77.0)) == 77.0
    assert Backoff(30.0).after(Refused("later")) <= 0.5


def test_an_identity_is_new_at_each_start() -> None:
    first, second = Identity.of("uid", "1"), Identity.of("uid", "1")
    assert first.agent_id.startswith("uid.")
    assert first != second
    assert Identity.of("", "1").agent_id.split(".")[0] != Identity.of("", "1").agent_id.split(".")[0]
