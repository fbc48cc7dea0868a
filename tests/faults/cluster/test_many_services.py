"""Many actions with services at once leave nothing behind, also if their agent is killed in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, until

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

QUICK: dict[str, Any] = {
    "cluster": {"lease_duration": "4s", "lease_renew": "1s"},
    "services": {"cpu": "1m", "memory": "8Mi", "timeout": "300s"},
    "policy": {"default_cpu": "1m", "default_memory": "8Mi", "pending_timeout": "900s"},
    "environment": {"helper_resources": {"requests": {"cpu": "1m", "memory": "16Mi"}}},
}
# Number of pods at once. The node of the local cluster starts more pods too slowly.
SLOTS = 30
# A service that ignores TERM and answers at a port.
DEAF = ["sh", "-c", "trap '' TERM; while :; do echo hello | nc -l -p 5000 127.0.0.1; done"]


@pytest.mark.parametrize("count", [pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_many_actions_with_services_leave_nothing(own_lab: Lab, count: int) -> None:
    action = {
        "image": BUSYBOX,
        "commands": ["nc 127.0.0.1 5000 </dev/null"],
        "services": {"db": {"container": BUSYBOX, "command": DEAF, "ports": [5000]}},
        "artifacts": "none",
    }
    first = own_lab.agent(agent={"slots": SLOTS}, **QUICK)
    submission = own_lab.start({f"a{number}": action for number in range(count)})
    until(lambda: len(own_lab.observer.gone) > count // 4, "a quarter of the pods is not gone", 600)
    own_lab.agent(agent={"slots": SLOTS}, **QUICK)
    first.kill()
    reports = submission.wait(1000)
    assert {report.outcome for report in reports.values()} == {("succeeded", None, 0)}
    # `Lab.close` checks that no pod and no Secret is left.
