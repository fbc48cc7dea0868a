"""A Helm release of the chart: installed, changed and uninstalled with helm, and inspected with kubectl.

A Release lives as long as a test module. The agents run in one namespace, and the pods of their actions in another. The
scheduler is a process on this machine, so that tests can read the scheduler's files. Pods reach the scheduler.
"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any

from agent.domain.json import Object
from tests.e2e import kube
from tests.e2e.lab import until
from tests.e2e.observer import MANAGED

if TYPE_CHECKING:
    from pathlib import Path

CHART = kube.ROOT / "charts" / "sealci-agent"
IMAGE = {"repository": "localhost/sealci-agent", "tag": "dev"}


@cache
def helm_path() -> str:
    """Return the path of helm. Build it from its Go module if it is missing."""
    return kube.provider("helm", timeout=600).splitlines()[-1]


def helm(*arguments: str, values: Object | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run helm with `values` as YAML on its standard input. Return the finished process."""
    more = ["--values", "-"] if values is not None else []
    return subprocess.run(
        [helm_path(), *arguments, *more],
        env=kube.environment(),
        input=json.dumps(values) if values is not None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Release:
    """One Helm release of the agent's chart, installed with `values`. Its agents run in the namespace `namespace`."""

    def __init__(self, name: str, namespace: str, values: Object) -> None:
        self.name = name
        self.namespace = namespace
        self.values = {"image": IMAGE, **values}

    def helm(self, *arguments: str, values: Object | None = None) -> str:
        """Run helm in the namespace of this release. Return its output."""
        done = helm(*arguments, "--namespace", self.namespace, values=values)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}\n{self.state()}"
        return done.stdout

    def install(self) -> str:
        """Install the chart and wait until its pods are ready. Return the chart's notes, which helm prints."""
        words = ["install", self.name, str(CHART), "--create-namespace", "--wait", "--timeout", "180s"]
        return self.helm(*words, values=self.values)

    def upgrade(self, *arguments: str, **values: Any) -> None:
        """Upgrade the release. Each of `values` replaces the release's Helm value with the same name.

        Wait until the new agents are ready.
        """
        self.values = {**self.values, **values}
        words = ["upgrade", self.name, str(CHART), "--wait", "--timeout", "240s"]
        self.helm(*words, *arguments, values=self.values)

    def uninstall(self) -> None:
        self.helm("uninstall", self.name, "--wait", "--timeout", "90s")

    @property
    def deployment(self) -> str:
        return f"{self.name}-sealci-agent"

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl in the namespace of the agents."""
        return kube.kubectl("--namespace", self.namespace, *arguments)

    def scale(self, replicas: int) -> None:
        """Scale the Deployment to `replicas` agents and wait until all of them are ready."""
        self.kubectl("scale", f"deployment/{self.deployment}", f"--replicas={replicas}")
        until(lambda: len(self.agents()) == replicas, f"there are not {replicas} agents: {self.state()}", 180)

    def agents(self) -> list[Object]:
        """Return the pods of agents that are ready and not being deleted."""
        selector = f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=agent"
        found = kube.get("pods", "--namespace", self.namespace, "--selector", selector)
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"] and ready(pod)]

    def uids(self) -> set[str]:
        """Return the UIDs of the pods in which agents run. An agent uses the UID of its pod as its agent id."""
        return {pod["metadata"]["uid"] for pod in self.agents()}

    def metrics(self, pod: Object) -> str:
        """Return the metrics of the agent in the pod `pod`."""
        name = pod["metadata"]["name"]
        return kube.kubectl("get", "--raw", f"/api/v1/namespaces/{self.namespace}/pods/{name}:8080/proxy/metrics")

    def anchor(self, namespace: str) -> str:
        """Return the UID of the ConfigMap in `namespace` that owns the pods of actions."""
        name = f"{self.namespace}-{self.deployment}-anchor"
        return str(kube.get("configmap", name, "--namespace", namespace)[0]["metadata"]["uid"])

    def state(self) -> str:
        """Return a text with the state and the logs of the agents' pods, for the message of a failed test."""
        listed = kube.kubectl("get", "pods", "--namespace", self.namespace, check=False)
        selector = f"app.kubernetes.io/instance={self.name}"
        words = ("logs", "--namespace", self.namespace, "--selector", selector, "--tail=20", "--prefix")
        return listed + kube.kubectl(*words, check=False)

    def leftovers(self) -> list[str]:
        """Return every object in the cluster that belongs to this release or its agents."""
        kinds = kube.kubectl("api-resources", "--verbs=list", "--output=name").split()
        kinds = [kind for kind in kinds if not kind.startswith(("events", "componentstatuses"))]
        return [
            f"{each['kind']}/{each['metadata'].get('namespace', '')}/{each['metadata']['name']}"
            for selector in (f"app.kubernetes.io/instance={self.name}", MANAGED)
            for each in kube.get(",".join(kinds), "--all-namespaces", "--selector", selector)
        ]


def ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def values_files() -> list[Path]:
    """Return the paths of the values files with which the tests render the chart."""
    return sorted((CHART / "ci").glob("*-values.yaml"))
