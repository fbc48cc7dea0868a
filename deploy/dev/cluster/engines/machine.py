"""Run kind in the Docker or podman that is installed on this machine and can pull kind's public node image."""

from __future__ import annotations

import shutil

from deploy.dev.cluster.builds import go_build, image_builders
from deploy.dev.cluster.console import CommandFailed, run
from deploy.dev.cluster.engines import podman
from deploy.dev.cluster.engines.engine import kind_variables
from deploy.dev.cluster.kube_api import KubeApi
from deploy.dev.cluster.node.config_files import write_json
from deploy.dev.cluster.settings import Settings


class Machine:
    """Docker or podman of this machine, as the engine of the provider `kind`.

    This class does not change the settings of Docker or podman.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.program = image_builders.find_engine() or "docker"
        self.image = f"kindest/node:v{settings.kubernetes}"

    def build(self) -> None:
        """Build kind if it is not installed. kind's node image contains all other programs that the cluster needs."""
        if shutil.which("kind") is None:
            go_build.build(self.settings, ("kind",))

    def prepare(self) -> None:
        self.remove()
        self.settings.folder.mkdir(mode=0o700, parents=True)
        write_json(self.settings.folder / "settings.json", self.settings.creation_settings)

    def config(self, text: str) -> str:
        return text

    def connect(self, node: str) -> None:
        """Do nothing. Docker and podman connect their containers to this machine by themselves."""

    def wait_for_services(self, api: KubeApi) -> None:
        """Wait for the Deployment of cluster DNS, because this machine has no route to a Service."""
        api.kubectl(["rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=80s"])

    def is_running(self) -> bool:
        # The engine always answers here, because `settings.read` raises CommandFailed if neither Docker nor podman
        # answers.
        return True

    def command(self, words: list[str]) -> list[str]:
        variables = {"KIND_EXPERIMENTAL_PROVIDER": self.program} if self.program != "docker" else {}
        return podman.with_environment(variables | kind_variables(self.settings)) + words

    def kind(self) -> str:
        return shutil.which("kind") or str(go_build.binary(self.settings, "kind"))

    def kubectl(self) -> str:
        found = shutil.which("kubectl")
        if found is None:
            raise CommandFailed("kubectl is not on PATH")
        return found

    def address(self) -> str:
        """Return the IPv4 gateway of the engine's network `kind`, which is this machine's address as pods see it."""
        template = {"docker": "{{range .IPAM.Config}}{{.Gateway}}\n{{end}}"}
        words = ["network", "inspect", "kind", "--format",
                 template.get(self.program, "{{range .Subnets}}{{.Gateway}}\n{{end}}")]  # fmt: skip
        return next(each for each in run([self.program, *words], seconds=30).split() if "." in each)

    def remove(self) -> None:
        # `kind delete cluster` needs the program kind, which an interrupted `up` has perhaps not built.
        self.build()
        run(self.command([self.kind(), "delete", "cluster"]), seconds=120)
        shutil.rmtree(self.settings.folder, ignore_errors=True)
