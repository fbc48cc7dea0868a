"""Describe the Deployment of CoreDNS in a local cluster, and check that CoreDNS answers behind its Service."""

from __future__ import annotations

import ipaddress
import socket
import struct

from deploy.dev.cluster.builds import images
from deploy.dev.cluster.node import way_out
from deploy.dev.cluster.settings import Settings

ZONE = "cluster.local"


def corefile(upstreams: list[str]) -> str:
    """Return the Corefile. CoreDNS forwards queries for names outside the cluster to the upstream servers.

    Without an upstream server, CoreDNS refuses such queries at once, instead of after a timeout.
    """
    forward = f"\n    forward . {' '.join(upstreams)}\n    loop\n    cache 30" if upstreams else ""
    return f""".:53 {{
    errors
    ready :8181
    kubernetes {ZONE} in-addr.arpa {{
        pods insecure
    }}{forward}
}}
"""


def manifest(settings: Settings) -> dict[str, object]:
    """Return all objects of CoreDNS as one List."""
    labels = {"k8s-app": "kube-dns"}
    meta = {"namespace": "kube-system", "name": "coredns"}
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    role = "system:coredns"
    ports = [{"name": f"dns-{p.lower()}", "port": 53, "protocol": p} for p in ("UDP", "TCP")]
    service = {"selector": labels, "clusterIP": settings.dns_service, "ports": ports}
    rbac = "rbac.authorization.k8s.io"
    return {
        "apiVersion": "v1",
        "kind": "List",
        "items": [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": meta,
                "data": {"Corefile": corefile(way_out.name_servers())},
            },
            {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": {"name": role}, "rules": rules},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "ClusterRoleBinding",
                "metadata": {"name": role},
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": "coredns"}],
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"namespace": "kube-system", "name": "kube-dns", "labels": labels},
                "spec": service,
            },
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {**meta, "labels": labels},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod_spec()},
                },
            },
        ],
    }


def pod_spec() -> dict[str, object]:
    container = {
        "name": "coredns",
        "image": images.COREDNS,
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"memory": "170Mi"}},
    }
    return {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }


def answers(settings: Settings) -> bool:
    """Return whether the Service of cluster DNS resolves the name of the Service `kubernetes`.

    The function builds the DNS query itself, because this machine's resolver does not know the cluster's DNS server.
    """
    labels = f"kubernetes.default.svc.{ZONE}".split(".")
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"
    # The DNS query consists of the header (id 1, one question, recursion desired), the name, type A and class IN.
    question = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(0.5)
        try:
            connection.connect((settings.dns_service, 53))
            connection.send(question)
            answer = connection.recv(512)
        except OSError:
            return False
    return answer.endswith(ipaddress.ip_address(settings.api_service).packed)
