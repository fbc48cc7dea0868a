"""Read the settings from environment variables, and derive folders, names and addresses from them.

Every command reads the settings once. The module reads no file and writes none. Every name and address contains
`CLUSTER_NUMBER` (0 to 9), so that several clusters can run on one machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed

LINK_PREFIX = "sealci-"
PROVIDERS = ("local", "kind", "kind-offline", "existing")
REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Settings:
    """The settings of one command. `number` is the variable CLUSTER_NUMBER, `kubernetes` a version like 1.37.2."""

    provider: str
    cache: Path
    kubernetes: str
    number: int
    log_max_size: str

    @property
    def creation_settings(self) -> dict[str, str]:
        """Return the settings that cannot change while the cluster is up, by name."""
        variables = {"KUBERNETES_VERSION": self.kubernetes, "CLUSTER_LOG_MAX_SIZE": self.log_max_size}
        return {"CLUSTER": self.provider} | variables

    @property
    def name(self) -> str:
        """Return the name of the cluster, of its node, of its network link and of its cgroup."""
        return f"{LINK_PREFIX}{self.number}"

    @property
    def folder(self) -> Path:
        """Return the folder of all state of this cluster. If the folder does not exist, there is no cluster."""
        return self.cache / "run" / str(self.number)

    @property
    def lock(self) -> Path:
        """Return the path of the file that a command locks while it changes the cluster.

        The file lies outside the folder that `down` removes.
        """
        return self.cache / f"{self.name}.lock"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def socket(self) -> Path:
        """Return the path of containerd's Unix socket."""
        return self.folder / "containerd.sock"

    @property
    def gateway(self) -> str:
        """Return the IP address of this machine as pods and the node see it."""
        return f"10.200.{self.number}.1"

    @property
    def node_address(self) -> str:
        """Return the IP address of the node as this machine sees it."""
        return f"10.200.{self.number}.2"

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return f"https://{self.node_address}:6443"

    @property
    def engine_network(self) -> str:
        """Return the subnet of kind's nodes.

        The subnet exists only inside the namespaces of the provider `kind-offline`.
        """
        return f"10.201.{self.number}.0/24"

    @property
    def engine_gateway(self) -> str:
        """Return the IP address under which kind's nodes reach the network namespace that `kind-offline` creates."""
        return f"10.201.{self.number}.1"

    @property
    def pod_network(self) -> str:
        """Return the subnet of pods. This machine has a route to it."""
        return f"10.{244 + self.number}.0.0/16"

    @property
    def service_network(self) -> str:
        """Return the subnet of Services. This machine has a route to it."""
        return f"10.{96 + self.number}.0.0/16"

    @property
    def api_service(self) -> str:
        """Return the address of the Service `kubernetes`."""
        return f"10.{96 + self.number}.0.1"

    @property
    def dns_service(self) -> str:
        """Return the address of the Service of cluster DNS."""
        return f"10.{96 + self.number}.0.10"


def read(find_engine: Callable[[], str]) -> Settings:
    """Read the settings of this command. Raise CommandFailed if a value is not possible.

    `find_engine` returns `docker`, `podman` or an empty string. The function runs programs and may be slow, so `read`
    calls it only if CLUSTER is `kind` or not set.
    """
    env = os.environ
    provider = env.get("CLUSTER") or ("kind" if find_engine() == "docker" else "local")
    if provider not in PROVIDERS:
        raise CommandFailed(f"CLUSTER={provider} is not one of {', '.join(PROVIDERS)}")
    if provider == "kind" and not find_engine():
        raise CommandFailed(
            "CLUSTER=kind needs Docker or podman, and neither answers on this machine."
            " Set CLUSTER=local or CLUSTER=kind-offline."
        )
    version = env.get("KUBERNETES_VERSION", "1.37.2").removeprefix("v")
    if not re.fullmatch(r"1\.\d+\.\d+", version):
        raise CommandFailed(f"KUBERNETES_VERSION={version} is not a version like 1.37.2")
    number = env.get("CLUSTER_NUMBER", "0")
    if not re.fullmatch(r"\d", number):
        raise CommandFailed(f"CLUSTER_NUMBER={number} is not a number from 0 to 9")
    cache = Path(env.get("SEALCI_CACHE") or "~/.cache/sealci-agent").expanduser().resolve()
    return Settings(provider, cache, version, int(number), env.get("CLUSTER_LOG_MAX_SIZE", "50Mi"))
