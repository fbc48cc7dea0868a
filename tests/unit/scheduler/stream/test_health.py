"""When a report of the agent's health to the scheduler is due, tested without a gRPC stream."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from agent.domain.session_state import Health, Readiness
from agent.scheduler.stream.health import HealthReporter


class Agent:
    """The health of an agent, and the reporter that decides when the health is sent."""

    def __init__(self) -> None:
        self.health = Health(Readiness.READY, 3)
        self.wake = asyncio.Event()
        self.reporter = HealthReporter(lambda: self.health, self.wake)


@pytest.fixture
def agent() -> Agent:
    return Agent()


def test_no_health_is_due_before_a_stream_or_a_change(agent: Agent) -> None:
    assert agent.reporter.take() is None
    agent.reporter.notify()
    assert agent.wake.is_set()
    assert agent.reporter.take() == agent.health
    assert agent.reporter.take() is None


def test_an_unchanged_health_is_not_sent_again(agent: Agent) -> None:
    agent.reporter.make_due()
    agent.reporter.take()
    agent.reporter.notify()
    assert agent.reporter.take() is None


def test_many_changes_are_one_message(agent: Agent) -> None:
    for running in range(5):
        agent.health = dataclasses.replace(agent.health, running=running)
        agent.reporter.notify()
    assert agent.reporter.take() == Health(Readiness.READY, 3, 4)
    assert agent.reporter.take() is None


def test_a_new_stream_gets_an_unchanged_health_too(agent: Agent) -> None:
    agent.reporter.notify()
    agent.reporter.take()
    agent.reporter.make_due()
    assert agent.reporter.take() == agent.health


async def test_the_clock_makes_the_health_due(agent: Agent) -> None:
    ticking = asyncio.create_task(agent.reporter.tick(0.001))
    for _ in range(2):
        await agent.wake.wait()
        agent.wake.clear()
        assert agent.reporter.take() == agent.health
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)
