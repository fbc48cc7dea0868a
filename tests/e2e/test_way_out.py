"""DNS lookups of a pod that go through the cluster's DNS to a name server outside the cluster.

All parts run on this machine, so the test needs no internet.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest

from deploy.dev.cluster.node import cluster_dns
from tests.e2e import kube
from tests.e2e.lab import DEBIAN
from tests.e2e.name_server import knowing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.domain.json import Object

NAME, ADDRESS = "only-outside.sealci.test", "203.0.113.7"
SYSTEM = "kube-system"
LOOKUP = "import socket, sys\nfor name in sys.argv[1:]: print(name, socket.gethostbyname(name))"


@pytest.fixture
def dns() -> Iterator[str]:
    """Run a second CoreDNS whose upstream server is the test's name server. Yield the IP address of the CoreDNS pod.

    Other tests use the cluster's own CoreDNS, so this fixture does not change the cluster's own CoreDNS.
    """
    name = f"way-out-{secrets.token_hex(3)}"
    meta = {"name": name, "namespace": SYSTEM}
    own = kube.get("deployment", "coredns", "-n", SYSTEM)[0]["spec"]["template"]["spec"]
    container = {
        "name": "coredns",
        "image": own["containers"][0]["image"],
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
    }
    spec = {
        "serviceAccountName": own["serviceAccountName"],
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    with knowing(NAME, ADDRESS) as upstream:
        corefile = cluster_dns.corefile([upstream])
        kube.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"Corefile": corefile}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec},
        )
        try:
            kube.kubectl("wait", "-n", SYSTEM, f"pod/{name}", "--for=condition=Ready", "--timeout=90s")
            yield kube.get("pod", name, "-n", SYSTEM)[0]["status"]["podIP"]
        finally:
            kube.kubectl("delete", "-n", SYSTEM, f"pod/{name}", f"configmap/{name}", "--wait=true")


def test_a_pod_resolves_a_name_that_only_a_server_outside_knows(namespace: str, dns: str) -> None:
    inside = "kubernetes.default.svc.cluster.local"
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "lookup", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": [dns]},
            "containers": [
                {
                    "name": "lookup",
                    "image": DEBIAN,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", LOOKUP, NAME, inside],
                }
            ],
        },
    }
    kube.apply(pod)
    kube.kubectl("wait", "-n", namespace, "pod/lookup", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=90s")
    service = kube.get("service", "kubernetes", "-n", "default")[0]["spec"]["clusterIP"]
    assert kube.kubectl("logs", "-n", namespace, "lookup").splitlines() == [f"{NAME} {ADDRESS}", f"{inside} {service}"]
