"""A cluster that somebody else runs: the current kube context, looked at and never changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from deploy.dev.cluster.console import CommandFailed, report, run
from deploy.dev.cluster.settings import Settings


class Existing:
    """The provider `existing`. Only what reads is possible."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def build(self) -> None:
        """Nothing to build."""

    def up(self) -> None:
        """Checks that the cluster answers; nothing is made."""
        run(["kubectl", "get", "--raw", "/readyz"], seconds=30)
        report(f"The existing cluster answers; KUBECONFIG={self.kubeconfig()}")

    def down(self) -> None:
        """Leaves the cluster alone."""
        report("The existing cluster is not ours: nothing is removed.")

    def status(self) -> bool:
        """Prints what the cluster says about its nodes."""
        print(run(["kubectl", "get", "nodes"], seconds=30), end="")
        return True

    def kubeconfig(self) -> Path:
        """The first file of KUBECONFIG, or kubectl's default."""
        return Path(os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config").expanduser()

    def program(self) -> str:
        """Where kubectl is."""
        found = shutil.which("kubectl")
        if found is None:
            raise CommandFailed("kubectl is not on PATH")
        return found

    def address(self) -> NoReturn:
        """Cannot be known."""
        raise CommandFailed("nothing on this machine can be reached from the pods of an existing cluster")

    def load(self, archive: Path) -> NoReturn:
        """Cannot be done."""
        raise CommandFailed(
            "images cannot be loaded into an existing cluster: push them to a registry that it pulls from"
        )

    def tag(self, image: str, name: str) -> NoReturn:
        """Cannot be done."""
        raise CommandFailed(f"{image} of an existing cluster cannot be named {name} from here")

    def log_limit(self, size: str) -> NoReturn:
        """Cannot be done."""
        raise CommandFailed(f"the kubelets of an existing cluster cannot be set to log files of {size} from here")

    def stop(self, name: str) -> NoReturn:
        """Cannot be done."""
        raise CommandFailed(f"{name} of an existing cluster cannot be stopped from here")

    def start(self, name: str, flags: Sequence[str] = ()) -> NoReturn:
        """Cannot be done."""
        raise CommandFailed(f"{name} of an existing cluster cannot be started from here")
