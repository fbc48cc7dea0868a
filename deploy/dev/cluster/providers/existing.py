"""Use the cluster of the current kube context, without changing its nodes or its components."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from deploy.dev.cluster.console import CommandFailed, report, run
from deploy.dev.cluster.settings import Settings


class Existing:
    """The provider `existing`. Verbs that would change the cluster raise CommandFailed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def build(self) -> None:
        """Do nothing. An existing cluster needs no binaries."""

    def up(self) -> None:
        """Check that the cluster answers."""
        run(["kubectl", "get", "--raw", "/readyz"], seconds=30)
        report(f"The existing cluster answers. KUBECONFIG={self.kubeconfig()}")

    def down(self) -> None:
        report("This command did not create the existing cluster, and removes nothing of it.")

    def status(self) -> bool:
        """Print the cluster's nodes as kubectl shows them, and return True. Raise CommandFailed if kubectl fails."""
        print(run(["kubectl", "get", "nodes"], seconds=30), end="")
        return True

    def kubeconfig(self) -> Path:
        """Return the first path in KUBECONFIG, or else kubectl's default path."""
        return Path(os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config").expanduser()

    def kubectl(self) -> str:
        found = shutil.which("kubectl")
        if found is None:
            raise CommandFailed("kubectl is not on PATH")
        return found

    def address(self) -> NoReturn:
        raise CommandFailed("the pods of an existing cluster cannot reach this machine")

    def load(self, archive: Path) -> NoReturn:  # noqa: ARG002 - the provider's interface
        raise CommandFailed("cannot load images into an existing cluster. Push them to a registry that it pulls from.")

    def tag(self, image: str, name: str) -> NoReturn:
        raise CommandFailed(f"cannot give the image {image} of an existing cluster the name {name}")

    def log_limit(self, size: str) -> NoReturn:
        raise CommandFailed(f"cannot set the log size of an existing cluster's kubelets to {size}")

    def stop(self, name: str) -> NoReturn:
        raise CommandFailed(f"cannot stop {name} of an existing cluster")

    def start(self, name: str, flags: Sequence[str] = ()) -> NoReturn:  # noqa: ARG002 - the provider's interface
        raise CommandFailed(f"cannot start {name} of an existing cluster")
