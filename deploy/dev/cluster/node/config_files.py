"""Write the configuration files of a local node.

Files of Kubernetes are JSON, which its YAML readers accept. All paths lie in the cluster's folder. Unusual settings are
for machines without systemd, with cgroup v1, or without CAP_SYS_RESOURCE.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.dev.cluster.builds import go_build, images
from deploy.dev.cluster.node import way_out
from deploy.dev.cluster.settings import Settings

# The port at which a test may run an image registry without TLS, on this machine's address in the cluster's network.
REGISTRY_PORT = 5000
CNI_PLUGINS = "/usr/lib/cni"
# Number of user ids in one block. The kubelet gives each pod with a user namespace one block.
USER_IDS = 65_536


def write(settings: Settings, folder: Path) -> None:
    """Write all configuration files into the cluster's folder, and create the folders to which they refer."""
    for name in ("logs", "cni", "certs.d", "pod-logs", "kubelet-plugins", "programs"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "containerd.toml").write_text(containerd_toml(settings, folder), "utf-8")
    write_json(folder / "cni" / "10-sealci.conflist", network(settings, folder))
    write_json(folder / "kubelet.json", kubelet(settings, folder, settings.log_max_size))
    write_json(folder / "kube-proxy.json", kube_proxy(settings, folder))
    registry = f"{settings.gateway}:{REGISTRY_PORT}"
    hosts = folder / "certs.d" / registry
    hosts.mkdir(exist_ok=True)
    (hosts / "hosts.toml").write_text(plain_registry(registry), "utf-8")
    (folder / "resolv.conf").write_text(way_out.resolv_conf(), "utf-8")
    write_user_id_range(folder)


def write_user_id_range(folder: Path) -> None:
    """Give the kubelet all blocks of user ids except the last block.

    The last block contains 2^32-1, which no kernel maps. With the kubelet's default range, one pod in 65,535 gets this
    block and never starts (EINVAL). A soak test found such a pod. A kubelet asks the program `getsubids` for its range
    if there is a user `kubelet`, so this function writes a `passwd` with this user, which node_init.py mounts, and a
    program `getsubids`.
    """
    users = Path("/etc/passwd").read_text("utf-8")
    (folder / "passwd").write_text(f"{users}kubelet:x:65534:65534::/nonexistent:/usr/sbin/nologin\n", "utf-8")
    program = folder / "programs" / "getsubids"
    program.write_text(f"#!/bin/sh\necho 0: kubelet {USER_IDS} {2**32 - 2 * USER_IDS}\n", "utf-8")
    program.chmod(0o755)


def plain_registry(address: str) -> str:
    """Return containerd's hosts.toml for a registry without TLS."""
    return f'server = "http://{address}"\n\n[host."http://{address}"]\n'


def write_json(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def kubelet(settings: Settings, folder: Path, log_max_size: str) -> dict[str, object]:
    """Return the KubeletConfiguration of the node.

    Pods run below the cluster's own cgroup. The kubelet evicts pods and deletes images only when the disk or the memory
    is nearly full, because evictions and deletions would disturb tests.
    """
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
        # The kubelet would create chains of iptables. Nothing needs these chains, because kube-proxy uses nftables.
        "makeIPTablesUtilChains": False,
        # The kubelet's default would lower its OOM score. Without CAP_SYS_RESOURCE the kernel refuses a lower OOM
        # score.
        "oomScoreAdj": 0,
        "resolvConf": f"{folder}/resolv.conf",
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
    """Return the KubeProxyConfiguration. kube-proxy implements Services by nftables."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{folder}/pki/kube-proxy.kubeconfig"},
        "clusterCIDR": settings.pod_network,
        # With 0, kube-proxy does not change the conntrack settings of the kernel. They belong to the whole machine and
        # not to the network namespace of the node.
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "oomScoreAdj": 0,
    }


def network(settings: Settings, folder: Path) -> dict[str, object]:
    """Return the CNI configuration, by which every pod gets a routed link of its own.

    kind uses routed links too. With a bridge instead, Services would need the kernel module br_netfilter.
    """
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
    """Return containerd's configuration as TOML.

    `restrict_oom_score_adj` is for machines without CAP_SYS_RESOURCE, `SystemdCgroup = false` for machines without
    systemd.
    """
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
sandbox = "{images.PAUSE}"

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
