"""Declare what differs between the container engines in which kind creates its node.

`Machine` is Docker or podman of this machine. `Offline` is a podman in Linux namespaces that serve one cluster alone.
An engine runs programs in the Linux namespaces of its containers. It prepares what `kind create cluster` needs, and
removes it with the cluster. The node itself is the same for both engines. providers/kind.py creates and controls it.
"""

from __future__ import annotations

from typing import Protocol

from deploy.dev.cluster.kube_api import KubeApi
from deploy.dev.cluster.settings import Settings


class Engine(Protocol):
    """A container engine for one cluster. `program` is its command line client, `image` the image of kind's node."""

    program: str
    image: str

    def build(self) -> None:
        """Build the programs and images that `kind create cluster` needs."""

    def prepare(self) -> None:
        """Remove what an earlier cluster left, start the engine, and create the cluster's empty folder."""

    def config(self, text: str) -> str:
        """Return the text of the cluster's kind.yaml. `text` is the content of the repository's kind.yaml."""

    def connect(self, node: str) -> None:
        """Make the node's pods and Services reachable from this machine, as far as the engine can."""

    def wait_for_services(self, api: KubeApi) -> None:
        """Wait until Services and cluster DNS work."""

    def is_running(self) -> bool:
        """Return whether the engine runs, so that command lines of the method `command` work."""

    def command(self, words: list[str]) -> list[str]:
        """Return a command line that runs `words` on this machine, or in the namespaces in which the engine runs."""

    def kind(self) -> str:
        """Return the path of the program `kind`."""

    def kubectl(self) -> str:
        """Return the path of a kubectl that fits the cluster."""

    def address(self) -> str:
        """Return this machine's address as pods see it."""

    def remove(self) -> None:
        """Remove the cluster and all that `prepare` made. Do nothing if there is no cluster."""


def kind_variables(settings: Settings) -> dict[str, str]:
    """Return the environment variables from which kind takes the name and the kubeconfig of the cluster."""
    return {"KIND_CLUSTER_NAME": settings.name, "KUBECONFIG": str(settings.kubeconfig)}
