"""The registry of environments: which pods an agent owns, has adopted, or has handed over."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from agent.cluster.environment.registry import EnvironmentRegistry
from agent.cluster.pod.manifest import Plan
from agent.domain.actions import Action, Key
from agent.telemetry.metrics import Metrics


@dataclass(eq=False)
class Environment:
    """A stand-in for an environment, with only the attributes that the registry uses."""

    plan: Plan
    uid: str = "uid-1"
    disowned: bool = False


def environment(name: str = "pod-1") -> Environment:
    action = Action(Key("build"), "alpine", ("true",))
    return Environment(Plan(action, name, "ci", "agent-1", nonce="nonce-1", timeout=60.0))


@pytest.fixture
def registry() -> EnvironmentRegistry:
    return EnvironmentRegistry(Metrics())


def gauge(registry: EnvironmentRegistry) -> float | None:
    return registry.metrics.registry.get_sample_value("sealci_agent_environments")


def test_an_environment_is_owned_until_its_release(registry: EnvironmentRegistry) -> None:
    own = environment()
    registry.own(own)
    assert (registry.owned_names, registry.owns("pod-1"), gauge(registry)) == (("pod-1",), True, 1)
    assert registry.find_owned("pod-1") is own
    assert registry.release(own)
    assert (registry.owned_names, registry.owns("pod-1"), gauge(registry)) == ((), False, 0)
    assert not registry.release(own), "a second release finds nothing"


def test_the_release_of_a_replaced_environment_keeps_its_successor(registry: EnvironmentRegistry) -> None:
    former, successor = environment(), environment()
    registry.own(former)
    registry.own(successor)
    assert not registry.release(former)
    assert registry.find_owned("pod-1") is successor
    assert gauge(registry) == 1


def test_claims_are_dropped_one_by_one_or_when_their_pods_are_gone(registry: EnvironmentRegistry) -> None:
    for name in ("a", "b", "c"):
        registry.add_claim(name)
    registry.drop_claim("a")
    registry.drop_claim("never-claimed")
    registry.retain_claims({"b": {}, "other": {}})
    assert registry.claimed_names == {"b"}


def test_a_handed_over_pod_is_forgotten_when_the_agent_adopts_it_again(registry: EnvironmentRegistry) -> None:
    registry.hand_over("nonce-1")
    assert registry.is_handed_over("nonce-1")
    registry.take_back("nonce-1")
    assert not registry.is_handed_over("nonce-1")


@pytest.mark.parametrize(
    ("seconds", "visible", "kept"),
    [
        (600.0, set(), True),
        (0.0, {"nonce-1"}, True),
        (0.0, set(), False),
    ],
    ids=["its creation may still be under way", "the watch shows it", "neither"],
)
def test_a_handed_over_pod_expires(seconds: float, visible: set[str], kept: bool) -> None:
    registry = EnvironmentRegistry(Metrics(), late_creation_seconds=seconds)
    registry.hand_over("nonce-1")
    registry.expire_handed_over(visible)
    assert registry.is_handed_over("nonce-1") is kept
