"""Orphans on a real cluster: agents delete and count them, and log what they cannot delete."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, COMMAND, Agent, Lab, until
from tests.e2e.observer import remains
from tests.faults.cluster import lost_pods
from tests.faults.cluster.lost_pods import PLAIN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)
SWEEPING = {"cluster": {"sweep_interval": "1s", "delete_timeout": "2s"}}
RIGHTS = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["create", "get", "list", "watch", "patch"]},
    {"apiGroups": [""], "resources": ["pods/log", "pods/exec"], "verbs": ["get", "create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "verbs": ["create", "list", "watch", "patch", "delete"],
    },
]
DELETE = {"apiGroups": [""], "resources": ["pods"], "verbs": ["delete"]}


def sample(agent: Agent, name: str) -> float:
    """Return the value of the series `name` in an agent's metrics."""
    found = re.search(rf"^sealci_agent_{re.escape(name)} (\S+)$", agent.get("/metrics")[1], re.MULTILINE)
    assert found, name
    return float(found[1])


def create_orphan(lab: Lab, agent_id: str, **metadata: Any) -> None:
    """Create a pod that carries the labels of the agent `agent_id` but has no session."""
    labels = {
        "app.kubernetes.io/managed-by": "sealci-agent",
        "sealci.dev/pool": lab.pool,
        "sealci.dev/agent": agent_id,
        "sealci.dev/claim": "1",
    }
    container = {"name": "action", "image": BUSYBOX, "command": ["sleep", "1000"]}
    spec = {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 1}
    meta = {"name": "stray", "namespace": lab.namespace, "labels": labels, **metadata}
    kube.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})


def agent_id(lab: Lab) -> str:
    """Return the id of the agent that holds the only Lease of the lab's pool."""
    leases = kube.get("leases", "-n", lab.namespace, "-l", f"sealci.dev/pool={lab.pool}")
    assert len(leases) == 1
    return str(leases[0]["spec"]["holderIdentity"])


def test_an_orphan_is_swept_and_a_foreign_finalizer_is_logged(own_lab: Lab) -> None:
    agent = own_lab.agent(**SWEEPING)
    submission = own_lab.start({"lives": {"image": BUSYBOX, "commands": [PLAIN]}})
    lost_pods.until_begun(submission, "lives")
    create_orphan(own_lab, agent_id(own_lab), finalizers=["example.org/kept"])
    until(lambda: sample(agent, "remains") == 1, "the orphan is not counted in remains", 60)
    assert sample(agent, "cleanup_failures_total") > 0
    assert sample(agent, 'swept_total{kind="pod"}') == 0
    assert "example.org/kept" in agent.log
    kube.kubectl("patch", "pod", "-n", own_lab.namespace, "stray", "-p", '{"metadata":{"finalizers":null}}')
    until(lambda: sample(agent, 'swept_total{kind="pod"}') == 1, "the swept pod is not counted", 60)
    assert sample(agent, "remains") == 0
    assert len(lost_pods.uids(own_lab, "lives")) == 1, "a living session was swept"
    submission.cancel()
    assert submission.wait(60)["lives"].outcome[0] == "cancelled"


def test_an_agent_without_the_right_to_delete_reports_it_and_sweeps_later(own_lab: Lab, tmp_path: Path) -> None:
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "agent", "namespace": own_lab.namespace}}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": rbac["metadata"]}
    subject = {"kind": "ServiceAccount", "name": "agent", "namespace": own_lab.namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "agent"}
    binding = {**rbac, "kind": "RoleBinding", "subjects": [subject], "roleRef": role}
    kube.apply(account, {**rbac, "kind": "Role", "rules": RIGHTS}, binding)
    config = json.loads(kube.kubectl("config", "view", "--raw", "-o", "json"))
    config["users"][0]["user"] = {"token": kube.kubectl("create", "token", "agent", "-n", own_lab.namespace).strip()}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    cluster = SWEEPING["cluster"] | {"kubeconfig": str(tmp_path / "kubeconfig")}
    agent = own_lab.agent(cluster=cluster, environment={"user_namespaces": "always"})
    report = own_lab.one(BUSYBOX, "echo hello", artifacts="none")
    assert report.outcome == ("succeeded", None, 0), report
    until(lambda: sample(agent, "remains") == 1, "the orphan is not counted in remains", 60)
    assert sample(agent, "cleanup_failures_total") > 0
    assert "cannot delete resource" in agent.log
    assert lost_pods.pod(own_lab, "action")
    kube.apply({**rbac, "kind": "Role", "rules": [*RIGHTS, DELETE]})
    until(lambda: sample(agent, "remains") == 0, "the pod is still counted in remains", 60)
    until(lambda: not remains(own_lab.namespace), "the pod was not deleted", 30)
    until(lambda: sample(agent, 'swept_total{kind="pod"}') == 1, "the swept pod is not counted", 30)


def test_the_cleanup_command_when_no_agent_runs(own_lab: Lab) -> None:
    agent = own_lab.agent(cluster={"lease_duration": "2s", "lease_renew": "1s"})
    secret = {"TOKEN": "s3cret-of-cleanup"}
    submission = own_lab.start(
        {"a": {"image": BUSYBOX, "commands": [PLAIN], "secrets": ["TOKEN"]}}, secret_values=secret
    )
    lost_pods.until_begun(submission, "a")
    agent.kill()
    pod = lost_pods.pod(own_lab, "a")["metadata"]["name"]
    stale = f"would delete Lease {own_lab.namespace}/"

    def dry_run() -> str:
        shown = cleanup(own_lab, "--dry-run")
        return shown if stale in shown else ""

    dry = until(dry_run, "no Lease is reported as stale")
    assert f"would delete {own_lab.namespace}/{pod}" in dry
    assert len(remains(own_lab.namespace)) == 2
    assert f"deleted {own_lab.namespace}/{pod}" in cleanup(own_lab)
    until(lambda: not remains(own_lab.namespace), "a pod or Secret remains", 30)
    assert kube.get("leases", "-n", own_lab.namespace) == []
    assert "0 environments" in cleanup(own_lab)
    submission.abandon()


def cleanup(lab: Lab, *more: str) -> str:
    """Run `sealci-agent cleanup` and return its output."""
    settings = ["--set", f"agent.pool={lab.pool}", "--set", f"cluster.namespace={lab.namespace}"]
    done = subprocess.run(
        [*COMMAND, "cleanup", *settings, *more],
        env=kube.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout
