"""A cluster by kind: with the machine's Docker or podman (`kind`), or with nothing but packages (`kind-offline`).

The node is a container in which systemd runs the kubelet and containerd, and the kubelet the rest from manifests.
Where that container lives is the engine's part (engines/offline.py). A cluster is whole once `created` stands in its folder:
what an interrupted `up` left is removed by the next.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.dev.cluster import locks
from deploy.dev.cluster.console import CommandFailed, report, run, step
from deploy.dev.cluster.engines import offline
from deploy.dev.cluster.kube_api import Api
from deploy.dev.cluster.node import components, namespaces
from deploy.dev.cluster.settings import REPOSITORY, Settings
from deploy.dev.cluster.waiting import until

UP_SECONDS = 600
KILL_SECONDS = 3.0
LOG_MAX_SIZE = "containerLogMaxSize: 50Mi"
CONFIG = REPOSITORY / "deploy" / "kind.yaml"
MANIFESTS, ORIGINALS = "/etc/kubernetes/manifests", "/kind/originals"
CERTIFICATES = "/etc/containerd/certs.d"
# How each component's command line begins, by the component's name.
UNITS = {"kubelet": "kubelet", "containerd": "containerd"}
STATIC_PODS = {
    "etcd": "etcd", "apiserver": "kube-apiserver", "controller-manager": "kube-controller-manager",
    "scheduler": "kube-scheduler",
}  # fmt: skip
PROGRAMS = {**UNITS, **STATIC_PODS, "kube-proxy": "kube-proxy"}
RUNNING = 'for each in "$@"; do ! pgrep -f "^(/[a-z/]*/)?$each( |$)" > /dev/null || echo "$each"; done'
KUBELET_FLAGS = "/etc/systemd/system/kubelet.service.d/20-flags.conf"
KUBELET = "/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS"


class Kind:
    """The providers `kind` and `kind-offline`: every verb of the command line."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = offline.choose(settings)
        self.node = f"{settings.name}-control-plane"
        self.created = settings.folder / "created"

    def build(self) -> None:
        """Makes the programs and images that creating needs."""
        self.engine.build()

    def up(self) -> None:
        """Creates the cluster unless it is there, and returns once pods, Services and DNS work."""
        self.build()
        settings = self.settings
        lock = settings.cache / f"{settings.name}.lock"
        with locks.lock(lock, "another command on this cluster"), step(f"cluster {settings.name} up"):
            if self.exists():
                namespaces.refuse_other_settings(settings)
            else:
                self.create()
            with step("the first ServiceAccount, the node, Services and cluster DNS"):
                self.engine.join(self.node)
                until(self.api.default_account_exists, "the ServiceAccount `default`")
                until(self.api.node_ready, "the node")
                self.engine.await_services(self.api)
        report(f"Kubernetes v{settings.kubernetes} answers: export KUBECONFIG={settings.kubeconfig}")

    def create(self) -> None:
        """A new cluster from kind.yaml, whose node takes images from a plain registry on this machine."""
        settings = self.settings
        with step("the engine, without a cluster"):
            self.engine.prepare()
        config = settings.folder / "kind.yaml"
        text = CONFIG.read_text("utf-8").replace(LOG_MAX_SIZE, f"containerLogMaxSize: {settings.log_max_size}")
        config.write_text(self.engine.config(text), "utf-8")
        with step(f"kind create cluster {settings.name}"):
            self.kind("create", "cluster", "--config", str(config), "--image", self.engine.image)
        registry = f"{self.address()}:{components.REGISTRY_PORT}"
        self.write(f"{CERTIFICATES}/{registry}/hosts.toml", components.plain_registry(registry))
        self.inside("cp", "--recursive", MANIFESTS, ORIGINALS)
        self.created.touch()

    def down(self) -> None:
        """Removes the cluster and its engine. Says so when there was none."""
        settings = self.settings
        existed = settings.folder.exists()
        lock = settings.cache / f"{settings.name}.lock"
        with locks.lock(lock, "another command on this cluster"), step(f"cluster {settings.name} down"):
            self.engine.remove()
        if not existed:
            report("There was no cluster.")

    def status(self) -> bool:
        """Prints one line per component; True when the cluster is whole."""
        if not self.exists():
            print(f"{self.settings.name}: down")
            return False
        running = self.running()
        for name, program in PROGRAMS.items():
            print(f"{name}: {'running' if program in running else 'stopped'}")
        ready = set(PROGRAMS.values()) <= running and self.api.node_ready()
        print(f"{self.settings.name}: {'ready' if ready else 'not ready'}, KUBECONFIG={self.settings.kubeconfig}")
        return ready

    def kubeconfig(self) -> Path:
        """The path of the kubeconfig file of a cluster that exists."""
        if not self.created.exists():
            raise CommandFailed("the cluster is not up: run `up` first")
        return self.settings.kubeconfig

    def program(self) -> str:
        """Where kubectl is."""
        return self.engine.kubectl()

    def address(self) -> str:
        """This machine, as pods see it."""
        return self.engine.address()

    def load(self, archive: Path) -> None:
        """Imports a docker archive into the node."""
        self.kind("load", "image-archive", str(archive))

    def tag(self, image: str, name: str) -> None:
        """Gives an image of the node another name."""
        self.inside("ctr", "--namespace", "k8s.io", "images", "tag", "--force", image, name)

    def stop(self, name: str) -> None:
        """Ends one component: a unit of the node, or a static pod whose manifest is taken away. Pods keep running."""
        if name in UNITS:
            self.inside("systemctl", "stop", name)
            return
        program = static_pod(name)
        self.inside("rm", "--force", f"{MANIFESTS}/{program}.yaml")
        try:
            until(lambda: program not in self.running(), f"the end of {name}", KILL_SECONDS)
        except CommandFailed:
            # Servers with open watches take long to leave. It may have left just now.
            self.inside("sh", "-c", 'pkill --signal KILL --full "$1" || true', "sh", f"^{program} ")
            until(lambda: program not in self.running(), f"the end of {name}")

    def start(self, name: str, flags: Sequence[str] = ()) -> None:
        """Starts one component, with these flags beside its own, and returns once it answers."""
        if name in UNITS:
            self.start_unit(name, flags)
        else:
            self.start_static_pod(name, flags)
        if name == "kubelet" and STATIC_PODS["apiserver"] in self.running():
            until(self.api.kubelet_knows_its_pods, "the kubelet to know its pods")

    def start_unit(self, name: str, flags: Sequence[str]) -> None:
        """Starts a unit of the node; only the kubelet takes flags."""
        if name == "kubelet":
            wanted = f"[Service]\nExecStart=\nExecStart={' '.join([KUBELET, *flags])}\n"
            as_it_runs = self.inside("sh", "-c", f"cat {KUBELET_FLAGS} || true") == wanted
            self.write(KUBELET_FLAGS, wanted)
            self.inside("systemctl", "daemon-reload")
            self.inside("systemctl", "start" if as_it_runs else "restart", name)
        elif flags:
            raise CommandFailed(f"{name} of a node of kind takes no flags")
        else:
            self.inside("systemctl", "start", name)

    def start_static_pod(self, name: str, flags: Sequence[str]) -> None:
        """Puts the manifest of a static pod back; one that runs with other flags is stopped first."""
        program = static_pod(name)
        manifest = f"{MANIFESTS}/{program}.yaml"
        wanted = with_flags(self.inside("cat", f"{ORIGINALS}/{program}.yaml"), program, flags)
        if self.inside("sh", "-c", f"cat {manifest} || true") != wanted:
            self.stop(name)
            self.write(manifest, wanted)
        until(lambda: program in self.running(), f"the start of {name}")
        if name in ("apiserver", "etcd"):
            until(self.api.ready, "the API server")

    def log_limit(self, size: str) -> None:
        """Starts the kubelet again with another containerLogMaxSize."""
        change = f"s/^containerLogMaxSize:.*/containerLogMaxSize: {size}/"
        self.inside("sed", "-i", change, "/var/lib/kubelet/config.yaml")
        self.stop("kubelet")
        self.start("kubelet")

    @property
    def api(self) -> Api:
        """The cluster's API."""
        return Api(self.program(), self.settings.kubeconfig, self.node)

    def running(self) -> set[str]:
        """Those programs of PROGRAMS that run on the node."""
        return set(self.inside("sh", "-c", RUNNING, "sh", *PROGRAMS.values()).split())

    def exists(self) -> bool:
        """Whether a cluster was created whole, and kind still knows it."""
        there = self.created.exists() and self.engine.runs()
        return there and self.settings.name in self.kind("get", "clusters").split()

    def kind(self, *words: str) -> str:
        """Runs kind; no word needs to name the cluster."""
        return run(self.engine.command([self.engine.kind(), *words]), seconds=UP_SECONDS)

    def by_hand(self, words: list[str]) -> int:
        """Runs kind for a person; returns its exit code."""
        return subprocess.run(self.engine.command([self.engine.kind(), *words]), check=False).returncode

    def inside(self, *words: str, stdin: str | None = None) -> str:
        """Runs a command on the node."""
        interactive = ["--interactive"] if stdin is not None else []
        return run(self.engine.command([self.engine.program, "exec", *interactive, self.node, *words]), stdin=stdin)

    def write(self, path: str, text: str) -> None:
        """Writes a file on the node; it appears whole."""
        script = 'mkdir -p "$(dirname "$1")" && cat > /kind/written && mv /kind/written "$1"'
        self.inside("sh", "-c", script, "sh", path, stdin=text)


def static_pod(name: str) -> str:
    """The program of a component that the kubelet runs from a manifest."""
    if name not in STATIC_PODS:
        raise CommandFailed(f"kind cannot stop {name}; it can stop {', '.join((*UNITS, *STATIC_PODS))}")
    return STATIC_PODS[name]


def with_flags(manifest: str, program: str, flags: Sequence[str]) -> str:
    """A static pod's manifest whose command has more flags at its end, where they win over the same before."""
    lines = manifest.splitlines(keepends=True)
    place = lines.index(f"    - {program}\n") + 1
    while lines[place].startswith("    - --"):
        place += 1
    return "".join([*lines[:place], *(f"    - {flag}\n" for flag in flags), *lines[place:]])
