"""What runs on the local node, and with which settings: files and command lines as data, nothing is started here.

Kubernetes' own files are JSON (which its YAML readers take), containerd's is TOML. All paths lie in the cluster's
folder. What is unusual comes from machines without systemd, with cgroup v1 or without CAP_SYS_RESOURCE.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.dev.cluster.builds import go_build
from deploy.dev.cluster.settings import Settings

PAUSE = "localhost/sealci-pause:1"
REGISTRY_PORT = 5000
CNI_PLUGINS = "/usr/lib/cni"
USER_IDS = 65_536  # in a block of the kubelet: those of one pod


@dataclass(frozen=True)
class Component:
    """A program of the node; the shape that node_init.py reads."""

    name: str
    command: list[str]
    check: dict[str, str]
    environment: dict[str, str] = field(default_factory=dict)


def http(address: str, path: str, pki: Path | None = None) -> dict[str, str]:
    """A check that a component answers with a 2xx; over TLS where the cluster's CA signed its certificate."""
    return {"address": address, "path": path} | ({"authority": f"{pki}/ca.crt"} if pki else {})


def write(settings: Settings, folder: Path) -> None:
    """Writes every configuration file and components.json into the cluster's folder."""
    for name in ("logs", "cni", "certs.d", "pod-logs", "kubelet-plugins", "programs"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "containerd.toml").write_text(containerd_toml(settings, folder), "utf-8")
    write_json(folder / "cni" / "10-sealci.conflist", network(settings, folder))
    write_json(folder / "kubelet.json", kubelet(settings, folder, settings.log_max_size))
    write_json(folder / "kube-proxy.json", kube_proxy(settings, folder))
    registry = f"{settings.gateway}:{REGISTRY_PORT}"  # where a test may run one
    hosts = folder / "certs.d" / registry
    hosts.mkdir(exist_ok=True)
    (hosts / "hosts.toml").write_text(plain_registry(registry), "utf-8")
    components = [asdict(c) for c in all_components(settings, folder)]
    write_json(folder / "components.json", {"name": settings.name, "components": components})
    write_ranges(folder)


def write_ranges(folder: Path) -> None:
    """Gives the kubelet all blocks of user ids but the last: it holds 2^32-1, and no kernel maps that.

    By its own default one pod in 65,535 gets that block and never starts (seen in a soak: EINVAL until its end). A
    kubelet asks for its range where there is a user of its name: node_init.py mounts this `passwd` for it.
    """
    users = Path("/etc/passwd").read_text("utf-8")
    (folder / "passwd").write_text(f"{users}kubelet:x:65534:65534::/nonexistent:/usr/sbin/nologin\n", "utf-8")
    program = folder / "programs" / "getsubids"
    program.write_text(f"#!/bin/sh\necho 0: kubelet {USER_IDS} {2**32 - 2 * USER_IDS}\n", "utf-8")
    program.chmod(0o755)


def plain_registry(address: str) -> str:
    """containerd's hosts.toml for a registry without TLS."""
    return f'server = "http://{address}"\n\n[host."http://{address}"]\n'


def write_json(path: Path, document: object) -> None:
    """One file for a person to read too."""
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def all_components(settings: Settings, folder: Path) -> list[Component]:
    """In the order of starting."""
    binary = {n: str(go_build.binary(settings, n)) for n in ("etcd", "containerd", "kubelet", "kube-proxy", "runc")}
    pki = folder / "pki"
    programs = ":".join([str(go_build.folder(settings, "containerd")), os.environ.get("PATH", os.defpath)])
    etcd = [
        binary["etcd"], f"--data-dir={folder}/etcd", "--unsafe-no-fsync", "--log-level=warn",
        "--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
    ]  # fmt: skip
    return [
        Component("etcd", etcd, http("127.0.0.1:2379", "/readyz")),
        Component(
            "containerd",
            [binary["containerd"], "--config", f"{folder}/containerd.toml"],
            {"socket": str(settings.socket)},
            {"PATH": programs},
        ),
        apiserver(settings, pki),
        controller_manager(settings, pki),
        Component(
            "scheduler",
            [str(go_build.binary(settings, "kube-scheduler")), f"--kubeconfig={pki}/kube-scheduler.kubeconfig",
             f"--authentication-kubeconfig={pki}/kube-scheduler.kubeconfig",
             f"--authorization-kubeconfig={pki}/kube-scheduler.kubeconfig",
             f"--tls-cert-file={pki}/kube-scheduler.crt", f"--tls-private-key-file={pki}/kube-scheduler.key",
             "--leader-elect=false", "--bind-address=127.0.0.1"],
            http("127.0.0.1:10259", "/healthz", pki),
        ),
        Component(
            "kubelet",
            [binary["kubelet"], f"--config={folder}/kubelet.json", f"--kubeconfig={pki}/kubelet.kubeconfig",
             f"--root-dir={folder}/kubelet", f"--cert-dir={folder}/kubelet-pki",
             f"--node-ip={settings.node_address}", f"--hostname-override={settings.name}"],
            http("127.0.0.1:10248", "/healthz"),
            {"PATH": f"{folder}/programs:{os.environ.get('PATH', os.defpath)}"},
        ),
        Component(
            "kube-proxy",
            [binary["kube-proxy"], f"--config={folder}/kube-proxy.json", f"--hostname-override={settings.name}"],
            http("127.0.0.1:10256", "/livez"),
        ),
    ]  # fmt: skip


def apiserver(settings: Settings, pki: Path) -> Component:
    """Real authorization (Node, RBAC) and all default admission, Pod Security among it."""
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
    return Component("apiserver", command, http("127.0.0.1:6443", "/readyz", pki))


def controller_manager(settings: Settings, pki: Path) -> Component:
    """All default controllers, each with its own ServiceAccount."""
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
        "--kube-api-qps=100",  # the default of 20 makes every `up` wait three seconds
        "--kube-api-burst=200",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]
    return Component("controller-manager", command, http("127.0.0.1:10257", "/healthz", pki))


def kubelet(settings: Settings, folder: Path, log_max_size: str) -> dict[str, object]:
    """Pods below a cgroup of this cluster's own; no eviction or image collection that a test did not ask for."""
    pki = folder / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet.key",
        "containerRuntimeEndpoint": f"unix://{settings.socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{settings.name}",
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "oomScoreAdj": 0,
        "resolvConf": "/dev/null",
        "clusterDNS": [settings.dns_service],
        "clusterDomain": "cluster.local",
        "podLogsDir": f"{folder}/pod-logs",
        "volumePluginDir": f"{folder}/kubelet-plugins",
        "containerLogMaxSize": log_max_size,
        "containerLogMaxFiles": 5,
        "containerLogMonitorInterval": "3s",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 250,
        "registryPullQPS": 0,
        "serializeImagePulls": False,
    }


def kube_proxy(settings: Settings, folder: Path) -> dict[str, object]:
    """Services by nftables; nothing outside the node's network namespace is touched."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{folder}/pki/kube-proxy.kubeconfig"},
        "clusterCIDR": settings.pod_network,
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
    }


def network(settings: Settings, folder: Path) -> dict[str, object]:
    """Every pod on a routed link of its own: Services work without the kernel's bridge filter, as kind does it."""
    addresses = {
        "type": "host-local",
        "dataDir": f"{folder}/cni-addresses",
        "ranges": [[{"subnet": settings.pod_network}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "1.0.0",
        "name": settings.name,
        "plugins": [
            {"type": "ptp", "ipMasq": False, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def containerd_toml(settings: Settings, folder: Path) -> str:
    """The restricted OOM score and plain cgroups are for machines without CAP_SYS_RESOURCE or systemd."""
    runc = go_build.binary(settings, "runc")
    return f"""version = 3
root = "{folder}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri"]

[grpc]
address = "{settings.socket}"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.images".registry]
config_path = "{folder}/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{folder}/cni"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
BinaryName = "{runc}"
"""
