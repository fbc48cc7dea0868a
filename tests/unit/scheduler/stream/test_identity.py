"""The name by which the scheduler knows an agent process."""

from __future__ import annotations

from agent.scheduler.stream.connection import Identity


def test_each_start_has_a_new_identity() -> None:
    first, second = Identity.of("uid", "1"), Identity.of("uid", "1")
    assert first.agent_id.startswith("uid.")
    assert first != second


def test_without_the_uid_of_a_pod_the_identity_is_random() -> None:
    assert Identity.of("", "1").agent_id.split(".")[0] != Identity.of("", "1").agent_id.split(".")[0]
