"""Query the API of a cluster with kubectl. The providers decide by these queries when a cluster is ready."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.dev.cluster.console import CommandFailed, run
from deploy.dev.cluster.waiting import WAIT_SECONDS

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"


@dataclass(frozen=True)
class KubeApi:
    """The API of one cluster. `node` is the name of its only node. The object holds no connection and no state."""

    kubectl_path: str | Path
    kubeconfig: Path
    node: str

    def kubectl(self, arguments: Iterable[str], stdin: str | None = None) -> str:
        words = [self.kubectl_path, "--kubeconfig", self.kubeconfig, *arguments]
        return run(words, stdin=stdin, seconds=WAIT_SECONDS)

    def is_ready(self) -> bool:
        try:
            self.kubectl(["get", "--raw", "/readyz"])
        except CommandFailed:
            return False
        return True

    def default_account_exists(self) -> bool:
        """Return whether the namespace `default` has its ServiceAccount.

        Without this ServiceAccount the API server admits no pod.
        """
        return bool(self.kubectl(["get", "serviceaccount", "default", "--ignore-not-found", "-o", "name"]))

    def node_ready(self) -> bool:
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        return self.kubectl(["get", "node", self.node, "--ignore-not-found", "-o", f"jsonpath={path}"]) == "True"

    def kubelet_knows_its_pods(self) -> bool:
        """Return whether the kubelet lists every pod that the API has bound to the node.

        A kubelet that just started lists no pod. For a pod that the kubelet does not list, `kubectl logs` and `kubectl
        exec` fail.
        """
        try:
            at_kubelet = json.loads(self.kubectl(["get", "--raw", f"/api/v1/nodes/{self.node}/proxy/pods"]))
        except CommandFailed:
            return False
        selector = f"fieldSelector=spec.nodeName={self.node}"
        bound = json.loads(self.kubectl(["get", "--raw", f"/api/v1/pods?{selector}"]))
        return kubelet_uids(bound) <= kubelet_uids(at_kubelet)


def kubelet_uids(pods: dict[str, Any]) -> set[str]:
    """Return the UIDs by which the kubelet knows the pods of a PodList.

    A static pod has one UID at the kubelet and another one in the API. The API's object has an annotation with the
    kubelet's UID.
    """
    metadata = [pod["metadata"] for pod in pods["items"] or ()]
    return {each.get("annotations", {}).get(MIRROR_ANNOTATION, each["uid"]) for each in metadata}
