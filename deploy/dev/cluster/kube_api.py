"""Waiting for a cluster: until something is so, and the questions to its API that every provider asks.

Nothing here keeps state; every wait has a deadline and ends in a refusal that says what was waited for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.dev.cluster.console import CommandFailed, run
from deploy.dev.cluster.waiting import WAIT_SECONDS

MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True)
class Api:
    """One cluster's API, asked by kubectl. `node` is the node that has the control plane."""

    program: str | Path
    kubeconfig: Path
    node: str

    def kubectl(self, arguments: Iterable[str], stdin: str | None = None) -> str:
        """Runs kubectl on this cluster."""
        words = [self.program, "--kubeconfig", self.kubeconfig, *arguments]
        return run(words, stdin=stdin, seconds=WAIT_SECONDS)

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            self.kubectl(["get", "--raw", "/readyz"])
        except CommandFailed:
            return False
        return True

    def default_account_exists(self) -> bool:
        """Whether pods in `default` would be admitted."""
        return bool(self.kubectl(["get", "serviceaccount", "default", "--ignore-not-found", "-o", "name"]))

    def node_ready(self) -> bool:
        """Whether the API says that the node is Ready."""
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        return self.kubectl(["get", "node", self.node, "--ignore-not-found", "-o", f"jsonpath={path}"]) == "True"

    def kubelet_knows_its_pods(self) -> bool:
        """Whether logs and exec work for every pod of the node: right after its start, the kubelet knows none."""
        try:
            known = json.loads(self.kubectl(["get", "--raw", f"/api/v1/nodes/{self.node}/proxy/pods"]))
        except CommandFailed:
            return False
        selector = f"fieldSelector=spec.nodeName={self.node}"
        bound = json.loads(self.kubectl(["get", "--raw", f"/api/v1/pods?{selector}"]))
        return uids(bound) <= uids(known)


def uids(pods: dict[str, Any]) -> set[str]:
    """The UIDs of the pods in a list, as their kubelet knows them: a static pod has another one in the API."""
    metadata = [pod["metadata"] for pod in pods["items"] or ()]
    return {each.get("annotations", {}).get(MIRROR, each["uid"]) for each in metadata}
