"""Caches on a claim that only container `helper` mounts, with a pod that is killed in the middle of a save."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from agent.settings import Settings
from tests.e2e import kube
from tests.e2e.lab import BUSYBOX, DEBIAN, Lab, open_lab, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.submission import Report

KEEPER = "keeper"


@pytest.fixture
def claim(namespace: str) -> Iterator[str]:
    """Yield the name of a claim on a folder of the node. The pod KEEPER mounts it at /caches."""
    name = f"sealci-e2e-{secrets.token_hex(3)}"
    size = {"storage": "1Gi"}
    bound = {"storageClassName": "", "accessModes": ["ReadWriteMany"]}
    folder = {"path": f"/var/tmp/{name}", "type": "DirectoryOrCreate"}
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": bound | {"capacity": size, "hostPath": folder},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": bound | {"volumeName": name, "resources": {"requests": size}},
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": KEEPER, "namespace": namespace},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "securityContext": {"runAsUser": 0},
                "containers": [
                    {
                        "name": KEEPER,
                        "image": Settings().environment.image,
                        "command": ["sleep", "600"],
                        "volumeMounts": [{"name": "caches", "mountPath": "/caches"}],
                    }
                ],
                "volumes": [{"name": "caches", "persistentVolumeClaim": {"claimName": name}}],
            },
        },
    )
    yield name
    keep(namespace, "rm -rf /caches/*")
    kube.kubectl("delete", "pod", KEEPER, "-n", namespace, "--wait=false")
    kube.kubectl("delete", "persistentvolume", name, "--wait=false")


@pytest.fixture
def lab(namespace: str, claim: str, tmp_path: Path) -> Iterator[Lab]:
    key = tmp_path / "sign-key"
    key.write_text(secrets.token_hex(32))
    caches = {"store": "claim", "claim": claim, "sign_key_file": str(key)}
    with open_lab(namespace, tmp_path, caches=caches) as lab:
        lab.secret_values.append(key.read_text())
        lab.agent()
        yield lab


def keep(namespace: str, command: str) -> str:
    """Run a command in the pod KEEPER."""
    return kube.kubectl("exec", "-n", namespace, KEEPER, "--", "sh", "-c", command)


def results(*reports: Report) -> list[str]:
    return [each["result"] for report in reports for each in report.events if each["event"] == "cache"]


def test_a_claim_keeps_caches_and_a_killed_pod_leaves_nothing_half(lab: Lab, claim: str) -> None:
    deps, twin = {"key": "deps", "paths": ["deps"]}, {"key": "twin", "paths": ["twin"]}
    large = {"key": "large", "paths": ["large"]}
    submission = lab.start(
        {
            "first": {
                "image": BUSYBOX,
                "cache": [deps],
                "commands": ["mkdir deps", "echo kept > deps/file", "chmod 640 deps/file"],
            },
            "second": {
                "image": DEBIAN,
                "needs": ["first"],
                "cache": [deps],
                "commands": ["cat deps/file; stat -c '%a' deps/file", "test ! -e /caches; ! grep caches /proc/mounts"],
            },
            **{
                name: {"image": BUSYBOX, "cache": [twin], "commands": [f"echo {name} > twin"], "artifacts": "none"}
                for name in ("left", "right")
            },
            # The file takes no disk. To pack it takes much longer than to kill the pod.
            "killed": {"image": DEBIAN, "cache": [large], "commands": ["truncate -s 12G large"], "artifacts": "none"},
        }
    )
    kube.kubectl("wait", "--for=condition=Ready", f"pod/{KEEPER}", "-n", lab.namespace)
    left_file = until(lambda: keep(lab.namespace, "find /caches -path '*/tmp/*' -size +1M"), "nothing is packed", 60)
    (pod,) = (each["metadata"]["name"] for each in kube.get("pods", "-n", lab.namespace) if "12G" in str(each["spec"]))
    kube.kubectl("delete", "pod", pod, "-n", lab.namespace, "--grace-period=0", "--force")
    reports = submission.wait(120)
    assert {each.outcome for each in reports.values()} == {("succeeded", None, 0)}, reports
    assert results(reports["first"]) == ["miss", "saved"], reports["first"]
    assert results(reports["second"]) == ["hit"], reports["second"]
    assert reports["second"].text.split() == ["kept", "640"]
    twins = results(reports["left"], reports["right"])
    assert twins.count("saved") == 1, twins
    assert results(reports["killed"]) == ["miss"], reports["killed"]
    assert "caches are not saved" in reports["killed"].text
    mounts = {
        container["name"]
        for state in lab.observer.states
        for container in (*state["spec"]["containers"], *state["spec"].get("initContainers", ()))
        if "/caches" in [mount["mountPath"] for mount in container["volumeMounts"]]
    }
    assert mounts - {KEEPER} == {"helper"}

    files = keep(lab.namespace, "find /caches -type f").split()
    assert [name for name in files if "/tmp/" in name] == left_file.split()
    # The archive of the action that was second has no entry.
    archives = 2 + twins.count("exists")
    assert [sum(part in name for name in files) for part in ("/key/", "/blob/")] == [2, archives]
    # Two days later, prune removes all of it.
    keep(lab.namespace, "find /caches -exec touch -d '2 days ago' {} +")
    prune = "sealci-agent cache prune --folder /caches --older-than 1d"
    assert f"deleted 2 entries and {archives} archives" in keep(lab.namespace, prune)
    assert keep(lab.namespace, "find /caches -type f") == ""
