"""`sealci-agent doctor` on a real cluster, with all rights that the agent needs, and without each right in turn."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml

from agent.app.doctor import examine
from agent.cluster.checks import probe_pod, warm_pod
from agent.cluster.checks.permissions import LEASE_RIGHTS, NUDGE_RIGHT, RIGHTS, Right
from agent.domain.check_result import Finding, Verdict
from agent.domain.json import Object
from agent.settings import Settings, load
from tests.e2e import kube
from tests.e2e.lab import COMMAND, start_scheduler, until
from tests.e2e.observer import remains

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ALL = (*RIGHTS, *LEASE_RIGHTS, NUDGE_RIGHT)
IMPOSSIBLE = ("create pods", "list pods", "watch pods", "delete pods")
# For each of these rights: the checks of the doctor's probe pod that fail if the right is missing.
SHOWS = {
    "get pods/log": {probe_pod.LOG},
    "get pods/exec": {probe_pod.EXEC},
    "create pods/exec": {probe_pod.EXEC},
    "create secrets": {probe_pod.POD_RUNS},
    "get pods": {probe_pod.POD_DELETED},
}


def account(namespace: str, name: str, rights: Iterable[Right]) -> list[Object]:
    """Return the ServiceAccount `name`, and the Role and RoleBinding that give it these rights."""
    rules = [{"apiGroups": [each.group], "resources": [each.resource], "verbs": [each.verb]} for each in rights]
    api = "rbac.authorization.k8s.io"
    meta = {"name": name, "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": meta, "rules": rules},
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    ]


def kubeconfig(folder: Path, namespace: str, name: str) -> Path:
    """Write a kubeconfig with a new token of the ServiceAccount `name` into `folder`. Return its path."""
    config = yaml.safe_load(kube.kubectl("config", "view", "--raw", "--minify", "--flatten"))
    token = kube.kubectl("create", "token", name, "-n", namespace).strip()
    config["users"] = [{"name": name, "user": {"token": token}}]
    config["contexts"][0]["context"]["user"] = name
    file = folder / f"{name}.kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


def settings(config: Path, namespace: str) -> Settings:
    """Return the settings of an agent that uses the kubeconfig file `config`."""
    return load(None, {"cluster": {"kubeconfig": str(config), "namespace": namespace}}, {})


async def findings(settings: Settings, seconds: float = 60) -> dict[str, Finding]:
    """Run the doctor's checks of the cluster. Return the finding of each check by the check's name."""
    return {each.check: each async for each in examine(settings, parts=("cluster",), seconds=seconds)}


def slug(right: Right) -> str:
    """Return the name of the ServiceAccount that has all rights except `right`."""
    return "without-" + re.sub(r"\W", "-", str(right))


async def test_each_missing_right_is_named(namespace: str, tmp_path: Path) -> None:
    kube.apply(*(each for gone in ALL for each in account(namespace, slug(gone), set(ALL) - {gone})))
    few_at_once = asyncio.Semaphore(4)

    async def without(gone: Right) -> dict[str, Finding]:
        async with few_at_once:
            config = await asyncio.to_thread(kubeconfig, tmp_path, namespace, slug(gone))
            return await findings(settings(config, namespace))

    found = dict(zip(ALL, await asyncio.gather(*map(without, ALL)), strict=True))
    for gone, seen in found.items():
        wrong = [each for each in seen.values() if each.check.startswith("right:") and each.verdict is not Verdict.OK]
        assert [each.check for each in wrong] == [f"right: {gone}"], seen
        assert wrong[0].verdict is (Verdict.WARNING if gone.optional else Verdict.FAILED)
        assert f'add the verb "{gone.verb}" on "{gone.resource}"' in wrong[0].advice
        if str(gone) in IMPOSSIBLE:
            assert seen["probe"].verdict is Verdict.SKIPPED
            assert str(gone) in seen["probe"].detail
            continue
        broken = {each.check for each in seen.values() if each.verdict is Verdict.FAILED} - {wrong[0].check}
        shown = SHOWS.get(str(gone), set())
        if str(gone) == "create pods/exec" and kube.version() < (1, 35):
            # Before Kubernetes 1.35 an exec needs only the verb `get`. So no check fails without the verb `create`.
            shown = set()
        assert broken == shown, (str(gone), seen)
        for check in broken:
            print(f"without {gone}: {seen[check].detail}")
            assert "forbidden" in seen[check].detail or "403" in seen[check].detail
            assert "Traceback" not in seen[check].detail
    until(lambda: not remains(namespace), f"remains: {remains(namespace)}", 30)


def test_the_command_prints_every_check(namespace: str, tmp_path: Path) -> None:
    kube.apply(*account(namespace, "agent", ALL))
    config = kubeconfig(tmp_path, namespace, "agent")
    scheduler, address = start_scheduler(tmp_path)
    flags = ["--set", f"cluster.kubeconfig={config}", "--set", f"cluster.namespace={namespace}"]
    flags += ["--set", f"scheduler.address={address}", "--set", "scheduler.tls.enabled=false"]
    flags += ["--set", "warm.learn.max_pods=1"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, "doctor", *flags, *more]
        return subprocess.run(command, env=kube.environment(), capture_output=True, text=True, timeout=120, check=False)

    try:
        well = run()
        print(well.stdout)
        assert (well.returncode, well.stderr) == (0, "")
        assert "FAILED" not in well.stdout
        probe = (probe_pod.POD_RUNS, probe_pod.LOG, probe_pod.EXEC, probe_pod.USER_NAMESPACE, probe_pod.POD_DELETED)
        for check in probe:
            assert re.search(rf"^ok +{check} ", well.stdout, re.MULTILINE), check
        # The check is a warning if this machine cannot reach the internet, because the cluster then cannot either.
        assert re.search(rf"^(ok|warning) +{probe_pod.OUTSIDE} ", well.stdout, re.MULTILINE)
        # A warning: the machine is slow.
        assert re.search(rf"^(ok|warning) +{warm_pod.WARM_POD} +an action began in a", well.stdout, re.MULTILINE)
        # Number of lines for the scheduler, the cluster, the rights, services, the probe pods, and the summary.
        assert len(well.stdout.splitlines()) == 4 + 3 + len(ALL) + 1 + 7 + 1
    finally:
        scheduler.terminate()
        scheduler.wait(10)
    ill = run("--only", "scheduler", "--output", "json")
    assert ill.returncode == 1
    lines = [json.loads(line) for line in ill.stdout.splitlines()]
    assert lines[0]["verdict"] == "failed"
    assert lines[0]["advice"]
    assert lines[-1] == {"event": "finished", "well": False, "ok": 0, "warning": 0, "failed": 1, "skipped": 3}


async def test_a_full_quota_is_reported(namespace: str) -> None:
    hard = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": namespace}}
    kube.apply(hard | {"spec": {"hard": {"pods": "0"}}})
    try:
        until(lambda: kube.get("resourcequota", "none", "-n", namespace)[0].get("status", {}).get("hard"), "no status")
        found = await findings(
            load(None, {"cluster": {"kubeconfig": kube.kubeconfig(), "namespace": namespace}}, {}), 20
        )
    finally:
        kube.kubectl("delete", "resourcequota", "none", "-n", namespace)
    assert found["quota"].verdict is Verdict.WARNING
    assert "pods leaves room for 0 more default actions" in found["quota"].detail
    assert found[probe_pod.POD_RUNS].verdict is Verdict.FAILED
    assert "exceeded quota" in found[probe_pod.POD_RUNS].detail
    assert "raise the ResourceQuota" in found[probe_pod.POD_RUNS].advice


@pytest.mark.parametrize(
    ("image", "message"), [("localhost/nobody/has:1", "cannot be pulled"), ("localhost/sealci-test/nosh:1", "/bin/sh")]
)
async def test_a_pod_that_cannot_run_is_explained_and_deleted(namespace: str, image: str, message: str) -> None:
    at = load(
        None,
        {
            "cluster": {"kubeconfig": kube.kubeconfig(), "namespace": namespace},
            "policy": {"pull_grace": 3, "registry_grace": 3},
        },
        {},
    )
    found = {each.check: each async for each in examine(at, parts=("cluster",), image=image, seconds=60)}
    assert found[probe_pod.POD_RUNS].verdict is Verdict.FAILED
    assert message in found[probe_pod.POD_RUNS].detail
    assert found[probe_pod.LOG].verdict is Verdict.SKIPPED
    assert found[probe_pod.POD_DELETED].verdict is Verdict.OK
    assert not remains(namespace)
