"""Many actions with services at once leave nothing behind, also if their agent is killed in the middle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.lab import BUSYBOX, until

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

# On a node that starts many pods at once, a start takes minutes, and an agent gets little processor time. The limits
# are wide, because they are not what this test checks.
SETTINGS: dict[str, Any] = {
    "cluster": {"lease_duration": "10s", "lease_renew": "2s"},
    "services": {"cpu": "1m", "memory": "8Mi", "timeout": "900s"},
    "policy": {"default_cpu": "1m", "default_memory": "8Mi", "pending_timeout": "900s", "pull_timeout": "900s"},
    "environment": {"helper_resources": {"requests": {"cpu": "1m", "memory": "16Mi"}}},
}
# A service that ignores TERM. Only one program listens, so that the port stays open after the helper has dialled it.
DEAF = ["sh", "-c", "trap '' TERM; mkdir /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 5000 -h /tmp/www"]
ACTION: dict[str, Any] = {
    "image": BUSYBOX,
    "commands": ["wget -q -O - http://db:5000/", "sleep 2"],
    "services": {"db": {"container": BUSYBOX, "command": DEAF, "ports": [5000]}},
    "artifacts": "none",
}


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(("count", "slots"), [(20, 20), (200, 30), (200, 200)], ids=["20", "200", "200-at-once"])
def test_many_actions_with_services_leave_nothing(own_lab: Lab, count: int, slots: int) -> None:
    first = own_lab.agent(agent={"slots": slots}, **SETTINGS)
    submission = own_lab.start({f"a{number}": ACTION for number in range(count)})
    until(lambda: len(own_lab.observer.ended) >= count // 4, "a quarter of the actions has not ended", 900)
    first.kill()
    second = own_lab.agent(agent={"slots": slots}, **SETTINGS)
    reports = submission.wait(1200)
    assert {(each.outcome, each.text.count("hello\n")) for each in reports.values()} == {(("succeeded", None, 0), 1)}
    adopted = second.log.count("adopted a session")
    print(f"\n  {count} actions, {adopted} of them adopted")
    assert adopted
    # `Lab.close` checks that no pod and no Secret is left.
