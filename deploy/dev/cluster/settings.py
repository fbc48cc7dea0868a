"""What can be chosen, all of it by environment variables, and what follows from it: folders, names, addresses.

`CLUSTER_NUMBER` (0 to 9) moves every name and every address, so two clusters can live on one machine.
Read once per command; nothing here touches the disk.
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
    """One command's settings. `number` tells clusters on one machine apart, `kubernetes` is like 1.37.2."""

    provider: str
    cache: Path
    kubernetes: str
    number: int
    log_max_size: str

    @property
    def fixed(self) -> dict[str, str]:
        """What cannot change while a cluster is up."""
        made_with = {"KUBERNETES_VERSION": self.kubernetes, "CLUSTER_LOG_MAX_SIZE": self.log_max_size}
        return {"CLUSTER": self.provider} | made_with

    @property
    def name(self) -> str:
        """The name of the cluster, its node, its link and its cgroup."""
        return f"{LINK_PREFIX}{self.number}"

    @property
    def folder(self) -> Path:
        """All state of one local cluster; its absence means that there is none."""
        return self.cache / "run" / str(self.number)

    @property
    def kubeconfig(self) -> Path:
        """Where the admin's kubeconfig lies while the cluster is up."""
        return self.folder / "kubeconfig"

    @property
    def socket(self) -> Path:
        """Where containerd answers."""
        return self.folder / "containerd.sock"

    @property
    def gateway(self) -> str:
        """The machine, as pods and the node see it."""
        return f"10.200.{self.number}.1"

    @property
    def node_address(self) -> str:
        """The node, as the machine sees it."""
        return f"10.200.{self.number}.2"

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.node_address}:6443"

    @property
    def engine_network(self) -> str:
        """Addresses of kind's nodes, inside the namespaces of `kind-offline` only."""
        return f"10.201.{self.number}.0/24"

    @property
    def engine_gateway(self) -> str:
        """The namespaces, as kind's nodes see them."""
        return f"10.201.{self.number}.1"

    @property
    def pod_network(self) -> str:
        """Addresses of pods; the machine reaches them."""
        return f"10.{244 + self.number}.0.0/16"

    @property
    def service_network(self) -> str:
        """Addresses of Services; the machine reaches them."""
        return f"10.{96 + self.number}.0.0/16"

    @property
    def api_service(self) -> str:
        """The Service `kubernetes`."""
        return f"10.{96 + self.number}.0.1"

    @property
    def dns_service(self) -> str:
        """The Service of cluster DNS."""
        return f"10.{96 + self.number}.0.10"


def read(engine: Callable[[], str]) -> Settings:
    """The settings of this command. Refuses a value that cannot be."""
    env = os.environ
    provider = env.get("CLUSTER") or ("kind" if engine() == "docker" else "local")
    if provider not in PROVIDERS:
        raise CommandFailed(f"CLUSTER={provider} is not one of {', '.join(PROVIDERS)}")
    if provider == "kind" and not engine():
        raise CommandFailed(
            "CLUSTER=kind needs a Docker engine or podman, and none answers here: set CLUSTER=local or kind-offline"
        )
    version = env.get("KUBERNETES_VERSION", "1.37.2").removeprefix("v")
    if not re.fullmatch(r"1\.\d+\.\d+", version):
        raise CommandFailed(f"KUBERNETES_VERSION={version} is not a version like 1.37.2")
    number = env.get("CLUSTER_NUMBER", "0")
    if not re.fullmatch(r"\d", number):
        raise CommandFailed(f"CLUSTER_NUMBER={number} is not a number from 0 to 9")
    cache = Path(env.get("SEALCI_CACHE") or "~/.cache/sealci-agent").expanduser().resolve()
    return Settings(provider, cache, version, int(number), env.get("CLUSTER_LOG_MAX_SIZE", "50Mi"))
