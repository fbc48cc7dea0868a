"""Describe what the commands wait for: the part of the order by which container `helper` waits for services. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.domain.json import Object

if TYPE_CHECKING:
    from agent.cluster.pod.manifest import Plan
    from agent.settings import Settings


def start_gate(plan: Plan, settings: Settings) -> Object | None:
    """Return what container `helper` waits for before it starts the commands. None if it waits for no service."""
    services = plan.action.services
    if not services:
        return None
    return {
        "ports": [[number, port] for number, each in enumerate(services, 1) for port in each.ports],
        "names": [each.name for each in services],
        "seconds": settings.services.timeout,
        "release": any(each.needs_release for each in services),
        "tree": plan.upload_tree or plan.action.awaits_files,
    }


def gate_seconds(plan: Plan, settings: Settings) -> float:
    """Return the seconds that services add to the deadlines inside the pod."""
    return settings.services.timeout if plan.action.services else 0.0
