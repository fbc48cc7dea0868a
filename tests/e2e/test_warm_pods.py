"""Actions that begin in warm pods, on a real cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, SHELLS, Lab, new_namespace, open_lab, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.lab import Agent
    from tests.e2e.submission import Report


def until_idle(agent: Agent, count: int) -> None:
    """Wait until `count` warm pods wait for an action."""
    text = f'sealci_agent_warm_pods{{state="idle"}} {count}.0'
    until(lambda: text in agent.get("/metrics")[1], f"there are not {count} warm pods", 90)


def is_warm(lab: Lab, report: Report) -> bool:
    """Return whether the pod of an action was a warm pod."""
    names = {pod["metadata"]["name"] for each in lab.action_ids(report) for pod in lab.observer.pods(each)}
    assert len(names) == 1
    return str(names.pop()).startswith("sealci-warm-")


def test_actions_of_every_shell_begin_in_warm_pods_that_fit_and_in_no_others(own_lab: Lab) -> None:
    pools = [*({"image": image} for image in SHELLS.values()), {"image": BUSYBOX, "class": "strict"}]
    classes = {"strict": {"profile": "restricted"}, "other": {}}
    agent = own_lab.agent(environment={"classes": classes}, warm={"pools": pools})
    until_idle(agent, len(pools))
    commands = [
        'printf "%s\\r\\n" "$TOKEN$GREETING" | wc -c',
        "grep -q TOKEN /proc/1/cmdline || echo hidden",
        "echo x > file; exit 3",
    ]
    keys = {"commands": commands, "env": {"GREETING": "hello"}, "secrets": ["TOKEN"], "artifacts": {"when": "always"}}
    actions = {name: {"image": image, **keys} for name, image in SHELLS.items()}
    actions |= {"large": {"image": BUSYBOX, "resources": {"cpu": "20m"}, **keys}}
    actions |= {name: {"image": BUSYBOX, "class": name, **keys} for name in classes}
    reports = own_lab.run(actions, secret_values={"TOKEN": "hunter2-hunter2"})
    for name, report in reports.items():
        assert report.outcome == ("failed", "COMMAND_FAILED", 3), report
        assert (report.text.replace(" ", ""), set(report.files)) == ("22\nhidden\n", {"file"})
        assert is_warm(own_lab, report) == (name in (*SHELLS, "strict"))
    # The time that the pod has waited does not count for the timeout, and a stop reaches the commands.
    until_idle(agent, len(pools))
    commands = ["sleep 0.5; echo alive; sleep 100"]
    slow = own_lab.run({"slow": {"image": BUSYBOX, "commands": commands, "timeout": "2s"}})["slow"]
    assert slow.text.startswith("alive\n")
    assert (slow.outcome[1], is_warm(own_lab, slow)) == ("DEADLINE_EXCEEDED", True)


def test_a_full_quota_takes_the_warm_pods_and_the_profile_restricted_has_warm_pods_too(tmp_path: Path) -> None:
    restricted = "pod-security.kubernetes.io/enforce=restricted"
    with new_namespace(restricted) as namespace:
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota", "namespace": namespace}}
        # The quota has room for two warm pods and for one action. A refused warm pod would be tried again after 30 s.
        kube.apply(quota | {"spec": {"hard": {"pods": "3"}}})
        until(lambda: kube.get("resourcequota", "quota", "-n", namespace)[0].get("status", {}).get("hard"), "no status")
        with open_lab(namespace, tmp_path, environment={"profile": "restricted"}) as lab:
            agent = lab.agent(warm={"pools": [{"image": BUSYBOX, "min": 2}]})
            until_idle(agent, 2)
            fits = lab.one(BUSYBOX, "id -u; echo x > file", artifacts={"paths": ["file"]})
            assert (fits.outcome, fits.text, set(fits.files)) == (("succeeded", None, 0), "65532\n", {"file"})
            assert is_warm(lab, fits)
            until_idle(agent, 2)
            cold = {"image": SHELLS["dash"], "commands": ["echo ran"], "artifacts": "none"}
            for other in lab.run({"one": cold, "two": cold}).values():
                assert (other.outcome, other.text, is_warm(lab, other)) == (("succeeded", None, 0), "ran\n", False)
            assert "a warm pod makes room for an action" in agent.log
