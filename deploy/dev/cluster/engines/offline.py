"""Where kind's nodes are containers: the machine's own engine, or a podman in namespaces of the cluster's own.

An engine knows how a command is run beside its containers and what has to be there before `kind create cluster` and
gone after `kind delete cluster`. What kind does, and what a node is, is in kind.py and the same for both.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

from deploy.dev.cluster.builds import debian, go_build, image_builders
from deploy.dev.cluster.console import CommandFailed, run
from deploy.dev.cluster.engines import node_image, podman
from deploy.dev.cluster.kube_api import Api
from deploy.dev.cluster.node import cluster_dns, components, leftovers, namespaces
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import until

# What kind bind-mounts and a machine without kernel modules has not got; a view of names that nobody outside answers.
INSIDE = """set -e
folder=$1; shift
mount -t tmpfs tmpfs /dev/shm
for group in "$@"; do mount --bind "$group" "$(dirname "$group")"; done
if ! [ -d /lib/modules ]; then
    mkdir -p /run/empty/modules
    mount -t overlay -o lowerdir=/run/empty:/usr/lib overlay /usr/lib
fi
names=$(readlink -m /etc/resolv.conf)
mkdir -p "$(dirname "$names")"
[ -e "$names" ] || touch "$names"
mount --bind "$folder/resolv.conf" "$names"
"""


class Engine(Protocol):
    """What differs between clusters of kind."""

    program: str
    image: str

    def build(self) -> None:
        """Makes the programs and images that creating needs."""

    def prepare(self) -> None:
        """From whatever is there to an engine without this cluster, and an empty folder of it."""

    def config(self, text: str) -> str:
        """The kind.yaml of this cluster, from the repository's."""

    def join(self, node: str) -> None:
        """Makes the machine reach what it can of the node that was created."""

    def await_services(self, api: Api) -> None:
        """Waits for Services and cluster DNS."""

    def runs(self) -> bool:
        """Whether commands can be run beside it."""

    def command(self, words: list[str]) -> list[str]:
        """The command line that runs a program beside the containers."""

    def kind(self) -> str:
        """Where kind is."""

    def kubectl(self) -> str:
        """Where a kubectl is that fits."""

    def address(self) -> str:
        """This machine, as pods see it."""

    def remove(self) -> None:
        """Removes the cluster and all that was made for it; none is fine."""


class Machine:
    """The engine of the machine, which can pull kind's public node image."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.program = image_builders.engine() or "docker"
        self.image = f"kindest/node:v{settings.kubernetes}"

    def build(self) -> None:
        """Builds kind itself when it is not installed; everything else is in the node image."""
        if shutil.which("kind") is None:
            go_build.build(self.settings, ("kind",))

    def prepare(self) -> None:
        """Deletes what an interrupted creation left."""
        self.remove()
        self.settings.folder.mkdir(mode=0o700, parents=True)
        components.write_json(self.settings.folder / "settings.json", self.settings.fixed)

    def config(self, text: str) -> str:
        """The repository's as it is."""
        return text

    def join(self, node: str) -> None:
        """Nothing: the engine has done it."""

    def await_services(self, api: Api) -> None:
        """Waits for the Deployment of cluster DNS."""
        api.kubectl(["rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=80s"])

    def runs(self) -> bool:
        """Always: the settings were refused otherwise."""
        return True

    def command(self, words: list[str]) -> list[str]:
        """The command, with the variables by which kind knows the engine and the cluster."""
        variables = {"KIND_EXPERIMENTAL_PROVIDER": self.program} if self.program != "docker" else {}
        return podman.with_environment(variables | names(self.settings)) + words

    def kind(self) -> str:
        """Where kind is."""
        return shutil.which("kind") or str(go_build.binary(self.settings, "kind"))

    def kubectl(self) -> str:
        """The one on PATH."""
        found = shutil.which("kubectl")
        if found is None:
            raise CommandFailed("kubectl is not on PATH")
        return found

    def address(self) -> str:
        """The gateway of the network that kind makes."""
        template = {"docker": "{{range .IPAM.Config}}{{.Gateway}}\n{{end}}"}
        words = ["network", "inspect", "kind", "--format",
                 template.get(self.program, "{{range .Subnets}}{{.Gateway}}\n{{end}}")]  # fmt: skip
        return next(each for each in run([self.program, *words], seconds=30).split() if "." in each)

    def remove(self) -> None:
        """Lets kind delete the cluster, and removes the folder."""
        self.build()
        run(self.command([self.kind(), "delete", "cluster"]), seconds=120)
        shutil.rmtree(self.settings.folder, ignore_errors=True)


class Offline:
    """A podman that nobody installed, with a node image that nobody pulled; one process tree, gone with its first.

    The API server is published on the address at which the local cluster has its own, pods and Services are routed: so
    clients on this machine need no wrapper.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.program = "podman"
        self.image = node_image.name(settings)

    def build(self) -> None:
        """Installs what building needs; builds the binaries, then the node image."""
        namespaces.require_root()
        debian.install(debian.KIND_PACKAGES)
        go_build.build(self.settings, go_build.KIND_NODE)
        node_image.ensure(self.settings)

    def prepare(self) -> None:
        """Removes what was there; starts the namespaces, joins them to the machine and gives podman a network."""
        settings = self.settings
        namespaces.clear(settings)
        folder = settings.folder
        for name in ("logs", "cni"):
            (folder / name).mkdir()
        components.write_json(folder / "components.json", {"name": settings.name, "components": []})
        components.write_json(folder / "cni" / "10-sealci.conflist", components.network(settings, Path("/var/lib")))
        (folder / "resolv.conf").write_text(f"nameserver {settings.engine_gateway}\n", "utf-8")
        podman.configure(settings, folder, folder / "podman", node_image.ensure(settings))
        namespaces.start(settings, own_cgroups=True)
        namespaces.await_first(settings)
        cgroups = list(map(str, leftovers.cgroups(settings)))
        run(namespaces.entered(settings, ["sh", "-c", INSIDE, "sh", str(folder), *cgroups]))
        namespaces.join_network(settings)
        run(self.command(["podman", "network", "create", "--disable-dns",
                          f"--subnet={settings.engine_network}", podman.NETWORK]))  # fmt: skip

    def config(self, text: str) -> str:
        """With this cluster's addresses, and a network that is settings alone."""
        return offline_config(text, self.settings)

    def join(self, node: str) -> None:
        """Routes the pods' and the Services' addresses to the node."""
        form = f"{{{{.NetworkSettings.Networks.{podman.NETWORK}.IPAddress}}}}"
        address = run(self.command(["podman", "inspect", f"--format={form}", node])).strip()
        for network in (self.settings.pod_network, self.settings.service_network):
            run(self.command(["ip", "route", "replace", network, "via", address]))

    def await_services(self, api: Api) -> None:
        """Waits until cluster DNS answers behind its Service, asked from this machine."""
        until(lambda: cluster_dns.answers(self.settings), "cluster DNS behind its Service")

    def runs(self) -> bool:
        """Whether the namespaces are there."""
        return namespaces.live(self.settings)

    def command(self, words: list[str]) -> list[str]:
        """The command, in the namespaces."""
        variables = podman.environment(self.settings, self.settings.folder) | names(self.settings)
        return namespaces.entered(self.settings, podman.with_environment(variables) + words)

    def kind(self) -> str:
        """The one that was built."""
        return str(go_build.binary(self.settings, "kind"))

    def kubectl(self) -> str:
        """The one that was built."""
        return str(go_build.binary(self.settings, "kubectl"))

    def address(self) -> str:
        """This machine, on the link that joins it to the namespaces."""
        return self.settings.gateway

    def remove(self) -> None:
        """Ends the process tree, with all containers, and removes what it left."""
        namespaces.require_root()
        leftovers.remove(self.settings)


def names(settings: Settings) -> dict[str, str]:
    """What kind is told about the cluster: no command needs its name then."""
    return {"KIND_CLUSTER_NAME": settings.name, "KUBECONFIG": str(settings.kubeconfig)}


def offline_config(text: str, settings: Settings) -> str:
    """The repository's kind.yaml with one cluster's addresses, its network's settings as a mount, and plain cgroups."""
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


def choose(settings: Settings) -> Engine:
    """The engine that the provider's name asks for."""
    return Offline(settings) if settings.provider == "kind-offline" else Machine(settings)
