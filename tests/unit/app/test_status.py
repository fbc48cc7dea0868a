"""The health that an agent reports before its Lease exists, and after a renewal of its Lease has failed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from agent.app.status import AgentStatus
from agent.cluster.capabilities import ClusterFacts
from agent.cluster.ownership.leases import Leases
from agent.settings import Settings
from tests.unit.cluster.ownership.test_leases import ME, Api


async def test_an_agent_that_starts_reports_no_failed_renewal() -> None:
    api: Any = Api()
    leases = Leases(api, Settings(), ME, ClusterFacts())
    nothing: Any = SimpleNamespace(trouble="")
    status = AgentStatus(Settings(), nothing, api, nothing, leases, nothing)
    assert status.trouble == "the agent is starting: it has no Lease yet"
    leases.log_failure("the API server does not answer")
    assert status.trouble == "the agent's Lease could not be renewed"
