"""Describe the components of a local node: command lines, environments and health checks, as data.

`write` writes the descriptions to components.json, from which node_init.py starts the components.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.dev.cluster.builds import go_build
from deploy.dev.cluster.node.config_files import write_json
from deploy.dev.cluster.settings import Settings


@dataclass(frozen=True)
class Component:
    """One program of the node. The fields are the keys that node_init.py reads."""

    name: str
    command: list[str]
    check: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)


def write(settings: Settings, folder: Path) -> None:
    """Write components.json into the cluster's folder."""
    components = [asdict(c) for c in all_components(settings, folder)]
    write_json(folder / "components.json", {"name": settings.name, "components": components})


def all_components(settings: Settings, folder: Path) -> list[Component]:
    pki = folder / "pki"
    return [
        etcd(settings, folder),
        containerd(settings, folder),
        apiserver(settings, pki),
        controller_manager(settings, pki),
        scheduler(settings, pki),
        kubelet(settings, folder, pki),
        kube_proxy(settings, folder),
    ]


def http_check(address: str, path: str, pki: Path | None = None) -> dict[str, str]:
    """Return a health check: a GET to `path` must be answered with a 2xx.

    With `pki`, the GET uses TLS and the cluster's CA.
    """
    return {"address": address, "path": path} | ({"authority": f"{pki}/ca.crt"} if pki else {})


def etcd(settings: Settings, folder: Path) -> Component:
    command = [
        str(go_build.binary(settings, "etcd")),
        f"--data-dir={folder}/etcd",
        # etcd's data need not survive a crash of the machine, and a sync for each write is slow on a busy disk.
        "--unsafe-no-fsync",
        "--log-level=warn",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
    ]
    return Component("etcd", command, http_check("127.0.0.1:2379", "/readyz"))


def containerd(settings: Settings, folder: Path) -> Component:
    command = [str(go_build.binary(settings, "containerd")), "--config", f"{folder}/containerd.toml"]
    # containerd looks on PATH for the program containerd-shim-runc-v2.
    programs = ":".join([str(go_build.folder(settings, "containerd")), os.environ.get("PATH", os.defpath)])
    return Component("containerd", command, {"socket": str(settings.socket)}, {"PATH": programs})


def apiserver(settings: Settings, pki: Path) -> Component:
    """Describe an API server with the authorization modes Node and RBAC and all default admission plugins.

    So the API server refuses requests in tests as it would in production.
    """
    command = [
        str(go_build.binary(settings, "kube-apiserver")),
        "--etcd-servers=http://127.0.0.1:2379",
        f"--advertise-address={settings.node_address}",
        "--secure-port=6443",
        f"--service-cluster-ip-range={settings.service_network}",
        f"--cert-dir={pki}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--kubelet-client-certificate={pki}/apiserver-to-kubelet.crt",
        f"--kubelet-client-key={pki}/apiserver-to-kubelet.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-accounts.pub",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
    ]
    return Component("apiserver", command, http_check("127.0.0.1:6443", "/readyz", pki))


def controller_manager(settings: Settings, pki: Path) -> Component:
    """Describe a controller manager that runs all default controllers, each with its own ServiceAccount."""
    name = "kube-controller-manager"
    command = [
        str(go_build.binary(settings, name)),
        f"--kubeconfig={pki}/{name}.kubeconfig",
        f"--authentication-kubeconfig={pki}/{name}.kubeconfig",
        f"--authorization-kubeconfig={pki}/{name}.kubeconfig",
        f"--tls-cert-file={pki}/{name}.crt",
        f"--tls-private-key-file={pki}/{name}.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--service-account-private-key-file={pki}/service-accounts.key",
        "--use-service-account-credentials",
        # With the default of 20 requests per second, the controller manager is so slow that every `up` takes three
        # seconds longer.
        "--kube-api-qps=100",
        "--kube-api-burst=200",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]
    return Component("controller-manager", command, http_check("127.0.0.1:10257", "/healthz", pki))


def scheduler(settings: Settings, pki: Path) -> Component:
    name = "kube-scheduler"
    command = [
        str(go_build.binary(settings, name)),
        f"--kubeconfig={pki}/{name}.kubeconfig",
        f"--authentication-kubeconfig={pki}/{name}.kubeconfig",
        f"--authorization-kubeconfig={pki}/{name}.kubeconfig",
        f"--tls-cert-file={pki}/{name}.crt",
        f"--tls-private-key-file={pki}/{name}.key",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]
    return Component("scheduler", command, http_check("127.0.0.1:10259", "/healthz", pki))


def kubelet(settings: Settings, folder: Path, pki: Path) -> Component:
    command = [
        str(go_build.binary(settings, "kubelet")),
        f"--config={folder}/kubelet.json",
        f"--kubeconfig={pki}/kubelet.kubeconfig",
        f"--root-dir={folder}/kubelet",
        f"--cert-dir={folder}/kubelet-pki",
        f"--node-ip={settings.node_address}",
        f"--hostname-override={settings.name}",
    ]
    # The folder `programs` holds a program `getsubids` that config_files.py writes. The kubelet finds this program by
    # PATH.
    environment = {"PATH": f"{folder}/programs:{os.environ.get('PATH', os.defpath)}"}
    return Component("kubelet", command, http_check("127.0.0.1:10248", "/healthz"), environment)


def kube_proxy(settings: Settings, folder: Path) -> Component:
    command = [
        str(go_build.binary(settings, "kube-proxy")),
        f"--config={folder}/kube-proxy.json",
        f"--hostname-override={settings.name}",
    ]
    return Component("kube-proxy", command, http_check("127.0.0.1:10256", "/livez"))
