"""A cluster by kind, in the machine's Docker engine: the public way, for developers and for CI elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import builds
import components
from console import Refusal, run, say, step
from settings import REPOSITORY, Settings

UP_SECONDS = 600
LOG_MAX_SIZE = "containerLogMaxSize: 50Mi"
CONFIG = REPOSITORY / "deploy" / "kind.yaml"
STATIC_PODS = {
    "apiserver": "kube-apiserver", "etcd": "etcd", "scheduler": "kube-scheduler",
    "controller-manager": "kube-controller-manager",
}  # fmt: skip
SERVICES = ("kubelet", "containerd")
MANIFESTS = "/etc/kubernetes/manifests"


class Kind:
    """The provider `kind`. Components are systemd units or static pods of the one node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.node = f"{settings.name}-control-plane"

    def build(self) -> None:
        """Builds kind itself when it is not installed; everything else is in kind's node image."""
        if shutil.which("kind") is None:
            builds.build(self.settings, ("kind",))

    def up(self) -> None:
        """Creates the cluster unless it exists, and waits until it serves."""
        self.build()
        settings = self.settings
        settings.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.exists():
            with step(f"kind create cluster {settings.name}"):
                self.create()
        self.kind("export", "kubeconfig", "--kubeconfig", settings.kubeconfig)
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")
        self.kubectl("rollout", "status", "--namespace=kube-system", "deployment/coredns", "--timeout=120s")
        say(f"Kubernetes v{settings.kubernetes} answers: export KUBECONFIG={settings.kubeconfig}")

    def create(self) -> None:
        """A new cluster from kind.yaml, whose node takes images from a plain registry on this machine."""
        config = self.settings.folder / "kind.yaml"
        text = CONFIG.read_text("utf-8").replace(LOG_MAX_SIZE, f"containerLogMaxSize: {self.settings.log_max_size}")
        config.write_text(text, "utf-8")
        image = f"kindest/node:v{self.settings.kubernetes}"
        self.kind("create", "cluster", "--config", config, "--wait", "120s", "--image", image,
                  "--kubeconfig", self.settings.kubeconfig)  # fmt: skip
        registry = f"{self.address()}:{components.REGISTRY_PORT}"
        folder = f"/etc/containerd/certs.d/{registry}"
        text = components.plain_registry(registry)
        self.inside("sh", "-c", f"mkdir -p {folder} && printf %s '{text}' > {folder}/hosts.toml")

    def down(self) -> None:
        """Deletes the cluster; none is fine."""
        with step(f"kind delete cluster {self.settings.name}"):
            self.build()
            self.kind("delete", "cluster", "--kubeconfig", self.settings.kubeconfig)
        shutil.rmtree(self.settings.folder, ignore_errors=True)

    def status(self) -> bool:
        """Prints what the cluster says about its node."""
        if not self.exists():
            print(f"{self.settings.name}: down")
            return False
        print(self.kubectl("get", "nodes"), end="")
        return True

    def kubeconfig(self) -> Path:
        """The path of the kubeconfig file of a cluster that exists."""
        if not self.exists():
            raise Refusal("the cluster is not up: run `up` first")
        return self.settings.kubeconfig

    def program(self) -> str:
        """Where kubectl is."""
        found = shutil.which("kubectl")
        if found is None:
            raise Refusal("kubectl is not on PATH")
        return found

    def address(self) -> str:
        """This machine, as the gateway of the network that kind makes."""
        template = "{{range .IPAM.Config}}{{.Gateway}}\n{{end}}"
        gateways = run(["docker", "network", "inspect", "kind", "--format", template], seconds=30).split()
        return next(each for each in gateways if "." in each)

    def load(self, archive: Path) -> None:
        """Imports a docker archive into the node."""
        self.kind("load", "image-archive", archive)

    def tag(self, image: str, name: str) -> None:
        """Gives an image of the node another name."""
        self.inside("ctr", "--namespace", "k8s.io", "images", "tag", "--force", image, name)

    def stop(self, name: str) -> None:
        """Ends one component: a unit of the node, or a static pod whose manifest is put aside."""
        if name in SERVICES:
            self.inside("systemctl", "stop", name)
            return
        manifest = self.manifest(name)
        self.inside("sh", "-c", f"test ! -e {MANIFESTS}/{manifest} || mv {MANIFESTS}/{manifest} /kind/{manifest}")
        until(lambda: not self.runs(name), f"the end of {name}")

    def start(self, name: str, flags: Sequence[str] = ()) -> None:
        """Starts one component again and waits until it runs."""
        if flags:
            raise Refusal(f"{name} of a kind cluster cannot be started with flags from here: use CLUSTER=local")
        if name in SERVICES:
            self.inside("systemctl", "start", name)
            return
        manifest = self.manifest(name)
        self.inside("sh", "-c", f"test ! -e /kind/{manifest} || mv /kind/{manifest} {MANIFESTS}/{manifest}")
        until(lambda: self.runs(name), f"the start of {name}")
        if name == "apiserver":
            until(self.answers, "the API server")

    def log_limit(self, size: str) -> None:
        """Starts the kubelet again with another containerLogMaxSize."""
        change = f"s/^containerLogMaxSize:.*/containerLogMaxSize: {size}/"
        self.inside("sed", "-i", change, "/var/lib/kubelet/config.yaml")
        self.stop("kubelet")
        self.start("kubelet")

    def manifest(self, name: str) -> str:
        """The file of a static pod's manifest."""
        if name not in STATIC_PODS:
            raise Refusal(f"kind cannot stop {name}; it can stop {', '.join((*SERVICES, *STATIC_PODS))}")
        return f"{STATIC_PODS[name]}.yaml"

    def runs(self, name: str) -> bool:
        """Whether the node's runtime has a running container of the static pod."""
        return bool(self.inside("crictl", "ps", "--quiet", "--name", f"^{STATIC_PODS[name]}$").strip())

    def answers(self) -> bool:
        """Whether the API server says that it is ready."""
        try:
            self.kubectl("get", "--raw", "/readyz")
        except Refusal:
            return False
        return True

    def exists(self) -> bool:
        """Whether kind knows the cluster."""
        return self.settings.name in self.kind("get", "clusters", named=False).split()

    def kind(self, *words: str | Path, named: bool = True) -> str:
        """Runs kind on this cluster."""
        program = shutil.which("kind") or builds.binary(self.settings, "kind")
        return run([program, *words, *(["--name", self.settings.name] if named else [])], seconds=UP_SECONDS)

    def inside(self, *words: str) -> str:
        """Runs a command on the node."""
        return run(["docker", "exec", self.node, *words], seconds=60)

    def kubectl(self, *words: str) -> str:
        """Runs kubectl on this cluster."""
        return run(["kubectl", "--kubeconfig", self.settings.kubeconfig, *words], seconds=180)


def until(passes: Callable[[], bool], what: str) -> None:
    """Waits until `passes`; refuses after a minute."""
    deadline = time.monotonic() + 60
    while not passes():
        if time.monotonic() > deadline:
            raise Refusal(f"waited 60 s for {what}")
        time.sleep(0.2)
