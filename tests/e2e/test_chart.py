"""The chart on a real cluster: installed, scaled, upgraded and uninstalled while actions run, and no action is lost."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import pytest

from agent.domain.json import Object
from tests.e2e import kube
from tests.e2e.gate import Gate, gate
from tests.e2e.lab import BUSYBOX, Lab, open_lab, until
from tests.e2e.observer import Observer
from tests.e2e.release import Release, helm
from tests.e2e.submission import Report, Submission
from tests.e2e.test_agent import metric

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.timeout(600), pytest.mark.alone]
SLOTS = 10
# Maximum number of seconds until pods run on a busy machine.
SLOW = 240
AGENT, ATTEMPT, CLAIM = "sealci.dev/agent", "sealci.dev/attempt", "sealci.dev/claim"


@pytest.fixture(scope="module")
def lab(namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab without agents, whose scheduler listens on an address that pods reach."""
    address = kube.provider("address").splitlines()[-1]
    with open_lab(namespace, tmp_path_factory.mktemp("chart"), listen=f"{address}:0") as lab:
        yield lab


@pytest.fixture(scope="module")
def release(lab: Lab) -> Iterator[Release]:
    """Yield a Helm release with two agents. The tests scale and change the release. The last test uninstalls it."""
    namespace = f"{lab.namespace}-agents"
    values: Object = {
        "replicaCount": 2,
        "scheduler": {"address": lab.address, "tls": {"enabled": False}},
        "agent": {"slots": SLOTS, "drain_timeout": "1s"},
        "cluster": {"namespace": lab.namespace},
        "environment": {"grace": "2s"},
        "policy": {"default_cpu": "5m", "default_memory": "16Mi"},
        "resources": {"requests": {"cpu": "10m"}},
    }
    release = Release(f"r{secrets.token_hex(2)}", namespace, values)
    try:
        notes = release.install()
        assert f"helm test {release.name}" in notes
        yield release
    finally:
        helm("uninstall", release.name, "--namespace", namespace, "--ignore-not-found", "--wait")
        kube.kubectl("delete", "namespace", namespace, "--wait=false", check=False)


def counting(gate: Gate) -> Object:
    """Return an action that writes a line a second until the test opens `gate`.

    Then the action writes the number of lines to a file.
    """
    count = "n=0; while kill -0 $! 2>/dev/null; do n=$((n+1)); echo line $n; sleep 1; done; echo $n > file"
    return {"image": BUSYBOX, "commands": [f"{gate.knock} & {count}"]}


def started(lab: Lab, number: int, gate: Gate) -> Submission:
    """Submit `number` actions that write lines until the gate is opened. Wait until each of them runs."""
    submission = lab.start({f"a{i}": counting(gate) for i in range(number)})
    for _ in submission.names:
        gate.until_connected(SLOW)
    return submission


def check_whole(reports: dict[str, Report]) -> None:
    """Check that every action succeeded, and that its log has as many lines as the action's file `file` states."""
    for report in reports.values():
        assert report.outcome == ("succeeded", None, 0), report
        lines = int(report.files["file"].read_text())
        assert report.text == "".join(f"line {i + 1}\n" for i in range(lines)), report


def labels_of(observer: Observer, lab: Lab, reports: dict[str, Report]) -> list[list[dict[str, str]]]:
    """Return the labels of every observed state of an action's pods, as one list for each action in `reports`."""
    ids = [lab.action_ids(report) for report in reports.values()]
    return [[pod["metadata"]["labels"] for each in found for pod in observer.pods(each)] for found in ids]


def owners(lab: Lab) -> set[str]:
    """Return the pod UIDs of the agents that own the existing pods of actions in the lab's namespace."""
    pods = kube.get("pods", "--namespace", lab.namespace, "--selector", AGENT)
    return {pod["metadata"]["labels"][AGENT].partition(".")[0] for pod in pods}


def test_an_installed_release_registers_its_replicas_and_runs_an_action(lab: Lab, release: Release) -> None:
    log = (lab.folder / "scheduler.log").read_text()
    registered = {
        json.loads(line)["agent"].partition(".")[0] for line in log.splitlines() if "agent registered" in line
    }
    assert registered == release.uids()
    assert len(registered) == 2
    report = lab.one(BUSYBOX, "echo hello", "id -u > who")
    assert report.outcome == ("succeeded", None, 0)
    assert report.text == "hello\n"
    assert set(report.files) == {"who"}
    (action,) = lab.action_ids(report)
    pod = lab.observer.pods(action)[0]
    (owner,) = pod["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("ConfigMap", release.anchor(lab.namespace))
    assert pod["spec"]["serviceAccountName"] == f"{release.namespace}-{release.deployment}-actions"


def test_helm_test_succeeds(release: Release) -> None:
    output = release.helm("test", release.name, "--logs", "--timeout", "180s")
    for check in ("right: create pods", "probe: pod runs", "probe: log", "probe: exec", "probe: pod deleted"):
        assert check in output, output
    assert "FAILED" not in output


def test_agents_run_restricted_and_without_variables_of_services(release: Release) -> None:
    for pod in release.agents():
        spec = pod["spec"]
        assert spec["enableServiceLinks"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        # Seconds: the drain (1), the grace period of commands (2), two deletions of pods (120), a reserve (60), and the
        # end of the stream (30).
        assert spec["terminationGracePeriodSeconds"] == 1 + 2 + 120 + 60 + 30
        security = spec["containers"][0]["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_forty_actions_are_spread_over_four_replicas_within_their_slots(lab: Lab, release: Release) -> None:
    release.scale(4)
    before = len(lab.observer.states)
    action = {"image": BUSYBOX, "commands": ["sleep 3"], "artifacts": "none"}
    reports = lab.run({f"a{i}": action for i in range(40)}, timeout=SLOW)
    assert [report.outcome for report in reports.values()] == [("succeeded", None, 0)] * 40
    most, at_once = most_at_once(lab.observer.states[before:])
    print(f"\n  actions per agent {sorted(most.values())}, at once at most {sorted(at_once.values())}")
    assert set(most) == release.uids()
    assert max(at_once.values()) <= SLOTS
    for pod in release.agents():
        text = release.metrics(pod)
        assert metric(text, "sealci_agent_actions_rejected_total", reason="no_slot") == 0


def most_at_once(states: list[Object]) -> tuple[dict[str, int], dict[str, int]]:
    """Return two dicts by the pod UID of an agent.

    The first dict has the number of the agent's pods of actions. The second dict has the largest number of these pods
    that ran at the same time.
    """
    live: dict[str, set[str]] = {}
    seen: dict[str, set[str]] = {}
    most: dict[str, int] = {}
    for pod in states:
        agent = pod["metadata"]["labels"].get(AGENT, "").partition(".")[0]
        if not agent:
            continue
        name = pod["metadata"]["name"]
        statuses = pod.get("status", {}).get("containerStatuses", ())
        ended = any("terminated" in each.get("state", {}) for each in statuses if each["name"] == "action")
        seen.setdefault(agent, set()).add(name)
        running = live.setdefault(agent, set())
        running.discard(name) if ended else running.add(name)
        most[agent] = max(most.get(agent, 0), len(running))
    return {agent: len(names) for agent, names in seen.items()}, most


def test_scaling_down_to_one_under_load_loses_nothing(lab: Lab, release: Release) -> None:
    release.scale(4)
    with gate() as end:
        submission = started(lab, 10, end)
        release.scale(1)
        end.open()
        reports = submission.wait(SLOW)
    check_whole(reports)
    for states in labels_of(lab.observer, lab, reports):
        assert {labels[ATTEMPT] for labels in states} == {"1"}


def test_an_upgrade_while_twenty_actions_run_loses_no_action(lab: Lab, release: Release) -> None:
    kube.provider("tag", "localhost/sealci-agent:dev", "localhost/sealci-agent:next")
    release.scale(2)
    anchor, old = release.anchor(lab.namespace), release.uids()
    with gate() as end:
        submission = started(lab, 20, end)
        # The chart must set no `replicas` (replicaCount is None), so that the upgrade keeps the count that `kubectl
        # scale` has set.
        release.upgrade(replicaCount=None, image={"repository": "localhost/sealci-agent", "tag": "next"})
        new = release.uids()
        assert len(new) == 2
        assert not old & new
        # Wait until no terminating agent owns a session. Otherwise such an agent would copy the files of the session's
        # action when the action ends.
        until(lambda: owners(lab) <= new, f"agents of the old version hold sessions: {owners(lab)}", SLOW)
        end.open()
        reports = submission.wait(SLOW)
    check_whole(reports)
    assert release.anchor(lab.namespace) == anchor
    for states in labels_of(lab.observer, lab, reports):
        assert {labels[ATTEMPT] for labels in states} == {"1"}
        assert states[0][AGENT].partition(".")[0] in old
        assert states[-1][AGENT].partition(".")[0] in new, "its files were collected by an agent of the old version"
        assert int(states[-1][CLAIM]) > 1


def test_an_upgrade_keeps_the_anchor(lab: Lab, release: Release) -> None:
    anchor = release.anchor(lab.namespace)
    release.upgrade("--force-replace", "--server-side=false", commonLabels={"changed": "yes"})
    assert release.anchor(lab.namespace) == anchor


def test_an_uninstall_under_load_leaves_nothing(lab: Lab, release: Release) -> None:
    with gate() as end:
        submission = started(lab, 8, end)
        release.uninstall()
        until(lambda: not release.leftovers(), f"objects are left: {release.leftovers()}", 60)
        submission.abandon()
