"""Run kind in a podman from Debian packages, with a node image that this machine built. No registry is needed.

The podman runs in namespaces of the cluster's own (see node/namespaces.py). Killing PID 1 of these namespaces ends
every process and every mount of the cluster.
"""

from __future__ import annotations

from pathlib import Path

from deploy.dev.cluster.builds import debian, go_build
from deploy.dev.cluster.console import run
from deploy.dev.cluster.engines import node_image, podman
from deploy.dev.cluster.engines.engine import kind_variables
from deploy.dev.cluster.kube_api import KubeApi
from deploy.dev.cluster.node import cgroups, cluster_dns, config_files, leftovers, namespaces
from deploy.dev.cluster.node.config_files import write_json
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import wait_until

# A shell script that runs once in the new namespaces, with the cluster's folder and its cgroups as arguments.
SET_UP_NAMESPACES = """set -e
folder=$1; shift
mount -t tmpfs tmpfs /dev/shm
# The cluster's cgroups become the roots of their hierarchies.
for group in "$@"; do mount --bind "$group" "$(dirname "$group")"; done
# kind mounts /lib/modules into its node, and a machine without kernel modules has no such folder.
if ! [ -d /lib/modules ]; then
    mkdir -p /run/empty/modules
    mount -t overlay -o lowerdir=/run/empty:/usr/lib overlay /usr/lib
fi
# Nodes must resolve no name outside the cluster. At the address in this resolv.conf no DNS server answers.
names=$(readlink -m /etc/resolv.conf)
mkdir -p "$(dirname "$names")"
[ -e "$names" ] || touch "$names"
mount --bind "$folder/resolv.conf" "$names"
"""


class Offline:
    """The podman that the provider `kind-offline` uses. It runs in the cluster's namespaces and ends with their PID 1.

    The API server has the same address as in a local cluster, and this machine has routes to pods and Services. So
    clients on this machine connect directly, and need not enter the namespaces.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.program = "podman"
        self.image = node_image.name(settings)

    def build(self) -> None:
        """Install Debian packages for the builds, build the binaries, then build kind's node image from them."""
        namespaces.require_root()
        debian.install(debian.KIND_PACKAGES)
        go_build.build(self.settings, go_build.KIND_NODE)
        node_image.build_if_missing(self.settings)

    def prepare(self) -> None:
        """Remove an earlier cluster and start the namespaces of the new cluster.

        Then connect the namespaces to this machine, and create podman's network.
        """
        settings = self.settings
        namespaces.prepare(settings)
        folder = settings.folder
        for name in ("logs", "cni"):
            (folder / name).mkdir()
        # The list is empty, because PID 1 of these namespaces starts no component of Kubernetes. It only keeps the
        # namespaces.
        write_json(folder / "components.json", {"name": settings.name, "components": []})
        write_json(folder / "cni" / "10-sealci.conflist", config_files.network(settings, Path("/var/lib")))
        (folder / "resolv.conf").write_text(f"nameserver {settings.engine_gateway}\n", "utf-8")
        podman.configure(settings, folder, folder / "podman", node_image.build_if_missing(settings))
        namespaces.start(settings, own_cgroups=True)
        namespaces.wait_until_listening(settings)
        groups = list(map(str, cgroups.of_cluster(settings)))
        run(namespaces.in_namespaces(settings, ["sh", "-c", SET_UP_NAMESPACES, "sh", str(folder), *groups]))
        namespaces.connect_network(settings)
        run(self.command(["podman", "network", "create", "--disable-dns",
                          f"--subnet={settings.engine_network}", podman.NETWORK]))  # fmt: skip

    def config(self, text: str) -> str:
        return offline_config(text, self.settings)

    def connect(self, node: str) -> None:
        """Add routes to the subnets of pods and Services. The routes lead to the container `node`."""
        template = f"{{{{.NetworkSettings.Networks.{podman.NETWORK}.IPAddress}}}}"
        address = run(self.command(["podman", "inspect", f"--format={template}", node])).strip()
        for network in (self.settings.pod_network, self.settings.service_network):
            run(self.command(["ip", "route", "replace", network, "via", address]))

    def wait_for_services(self, api: KubeApi) -> None:  # noqa: ARG002 - the engine's interface
        wait_until(lambda: cluster_dns.answers(self.settings), "cluster DNS behind its Service")

    def is_running(self) -> bool:
        return namespaces.is_running(self.settings)

    def command(self, words: list[str]) -> list[str]:
        variables = podman.environment(self.settings, self.settings.folder) | kind_variables(self.settings)
        return namespaces.in_namespaces(self.settings, podman.with_environment(variables) + words)

    def kind(self) -> str:
        return str(go_build.binary(self.settings, "kind"))

    def kubectl(self) -> str:
        return str(go_build.binary(self.settings, "kubectl"))

    def address(self) -> str:
        return self.settings.gateway

    def remove(self) -> None:
        namespaces.require_root()
        leftovers.remove(self.settings)


def offline_config(text: str, settings: Settings) -> str:
    """Return the repository's kind.yaml with this cluster's addresses and CNI configuration.

    `text` is the content of the repository's kind.yaml. The result also makes the kubelet use the cgroup driver
    cgroupfs, for machines with cgroup v1.
    """
    # The mounted folder has a CNI configuration for the node. It replaces kind's default CNI, whose image would have to
    # be pulled.
    mount = f"extraMounts: [{{hostPath: {settings.folder}/cni, containerPath: /etc/cni/net.d, readOnly: true}}]"
    role, kubelet = "  - role: control-plane\n", "    failCgroupV1: false\n"
    networking = f"""networking:
  ipFamily: ipv4
  apiServerAddress: {settings.node_address}
  apiServerPort: 6443
  podSubnet: {settings.pod_network}
  serviceSubnet: {settings.service_network}
  disableDefaultCNI: true
  kubeProxyMode: nftables
"""
    text = text.replace(role, f"{role}    {mount}\n").replace(kubelet, f"{kubelet}    cgroupDriver: cgroupfs\n")
    return text + networking
