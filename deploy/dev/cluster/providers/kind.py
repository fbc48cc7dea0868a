"""Run a cluster by kind, in Docker or podman of this machine (`kind`) or from packages alone (`kind-offline`).

The node is a container. systemd runs the kubelet and containerd in it, and the kubelet runs the other components from
manifests. The engine (see the package `engines`) runs the container. The last step of a creation writes the file
`created` into the cluster's folder. Without this file, the next `up` removes what is left and begins anew.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from deploy.dev.cluster import locks
from deploy.dev.cluster.console import CommandFailed, report, run, step
from deploy.dev.cluster.engines.engine import Engine
from deploy.dev.cluster.engines.machine import Machine
from deploy.dev.cluster.engines.offline import Offline
from deploy.dev.cluster.kube_api import KubeApi
from deploy.dev.cluster.node import config_files, namespaces
from deploy.dev.cluster.settings import REPOSITORY, Settings
from deploy.dev.cluster.waiting import wait_until

# Seconds until one run of kind fails.
KIND_SECONDS = 600
# Seconds until the kubelet kills a static pod after the pod's manifest was removed.
KILL_SECONDS = 3.0
LOG_MAX_SIZE = "containerLogMaxSize: 50Mi"
CONFIG = REPOSITORY / "deploy" / "kind.yaml"
# The kubelet runs the static pods of the first folder. The second folder keeps the manifests of kubeadm.
MANIFESTS, ORIGINALS = "/etc/kubernetes/manifests", "/kind/originals"
CERTIFICATES = "/etc/containerd/certs.d"
# The program of each component, which is the first word of the component's command line. systemd runs the programs in
# UNITS, and the kubelet runs those in STATIC_PODS.
UNITS = {"kubelet": "kubelet", "containerd": "containerd"}
STATIC_PODS = {
    "etcd": "etcd", "apiserver": "kube-apiserver", "controller-manager": "kube-controller-manager",
    "scheduler": "kube-scheduler",
}  # fmt: skip
PROGRAMS = {**UNITS, **STATIC_PODS, "kube-proxy": "kube-proxy"}
# A shell script whose arguments are names of programs. It prints the names of the programs that run.
RUNNING = 'for each in "$@"; do ! pgrep -f "^(/[a-z/]*/)?$each( |$)" > /dev/null || echo "$each"; done'
# A systemd drop-in file that overrides the command line of the kubelet in kind's own unit.
KUBELET_FLAGS = "/etc/systemd/system/kubelet.service.d/20-flags.conf"
KUBELET = "/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS"


class Kind:
    """The providers `kind` and `kind-offline`. An object lives as long as one command of the user."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.engine = choose_engine(settings)
        self.node = f"{settings.name}-control-plane"
        self.created_marker = settings.folder / "created"

    def build(self) -> None:
        self.engine.build()

    def up(self) -> None:
        """Create the cluster if it does not exist, and return when pods, Services and cluster DNS work."""
        self.build()
        settings = self.settings
        with locks.lock(settings.lock, "another command on this cluster"), step(f"cluster {settings.name} up"):
            if self.exists():
                namespaces.refuse_other_settings(settings)
            else:
                self.create()
            with step("the first ServiceAccount, the node, Services and cluster DNS"):
                self.engine.connect(self.node)
                wait_until(self.api.default_account_exists, "the ServiceAccount `default`")
                wait_until(self.api.node_ready, "the node")
                self.engine.wait_for_services(self.api)
        report(f"Kubernetes v{settings.kubernetes} answers. export KUBECONFIG={settings.kubeconfig}")

    def create(self) -> None:
        """Create a cluster from kind.yaml, and let its node pull images from a registry on this machine."""
        settings = self.settings
        with step("the container engine"):
            self.engine.prepare()
        config = settings.folder / "kind.yaml"
        text = CONFIG.read_text("utf-8").replace(LOG_MAX_SIZE, f"containerLogMaxSize: {settings.log_max_size}")
        config.write_text(self.engine.config(text), "utf-8")
        with step(f"kind create cluster {settings.name}"):
            self.run_kind("create", "cluster", "--config", str(config), "--image", self.engine.image)
        # A test may run an image registry without TLS at this address, so the node's containerd must accept it.
        registry = f"{self.address()}:{config_files.REGISTRY_PORT}"
        self.write_on_node(f"{CERTIFICATES}/{registry}/hosts.toml", config_files.plain_registry(registry))
        self.run_on_node("cp", "--recursive", MANIFESTS, ORIGINALS)
        self.created_marker.touch()

    def down(self) -> None:
        """Remove the cluster and what its engine made. If there was no cluster, report that."""
        settings = self.settings
        existed = settings.folder.exists()
        with locks.lock(settings.lock, "another command on this cluster"), step(f"cluster {settings.name} down"):
            self.engine.remove()
        if not existed:
            report("There was no cluster.")

    def status(self) -> bool:
        """Print one line per component. Return whether all components run and the node is ready."""
        if not self.exists():
            print(f"{self.settings.name}: down")
            return False
        running = self.running_programs()
        for name, program in PROGRAMS.items():
            print(f"{name}: {'running' if program in running else 'stopped'}")
        ready = set(PROGRAMS.values()) <= running and self.api.node_ready()
        print(f"{self.settings.name}: {'ready' if ready else 'not ready'}, KUBECONFIG={self.settings.kubeconfig}")
        return ready

    def kubeconfig(self) -> Path:
        """Return the path of the kubeconfig. Raise CommandFailed if the cluster is not up."""
        if not self.created_marker.exists():
            raise CommandFailed("the cluster is not up. Run `up` first.")
        return self.settings.kubeconfig

    def kubectl(self) -> str:
        return self.engine.kubectl()

    def address(self) -> str:
        return self.engine.address()

    def load(self, archive: Path) -> None:
        """Import a docker archive into the node."""
        self.run_kind("load", "image-archive", str(archive))

    def tag(self, image: str, name: str) -> None:
        self.run_on_node("ctr", "--namespace", "k8s.io", "images", "tag", "--force", image, name)

    def stop(self, name: str) -> None:
        """Stop one component and return when its process is gone. The pods of actions keep running.

        If the component is a static pod, remove the pod's manifest, so that the kubelet stops the pod.
        """
        if name in UNITS:
            self.run_on_node("systemctl", "stop", name)
            return
        program = static_pod(name)
        self.run_on_node("rm", "--force", f"{MANIFESTS}/{program}.yaml")
        try:
            wait_until(lambda: program not in self.running_programs(), f"the end of {name}", KILL_SECONDS)
        except CommandFailed:
            # SIGKILL is used because a server with open watches needs long to end on SIGTERM. pkill fails if the server
            # has ended just now.
            self.run_on_node("sh", "-c", 'pkill --signal KILL --full "$1" || true', "sh", f"^{program} ")
            wait_until(lambda: program not in self.running_programs(), f"the end of {name}")

    def start(self, name: str, flags: Sequence[str] = ()) -> None:
        """Start one component with `flags` added to its command line, and return when the component answers."""
        if name in UNITS:
            self.start_unit(name, flags)
        else:
            self.start_static_pod(name, flags)
        if name == "kubelet" and STATIC_PODS["apiserver"] in self.running_programs():
            wait_until(self.api.kubelet_knows_its_pods, "the kubelet to know its pods")

    def start_unit(self, name: str, flags: Sequence[str]) -> None:
        """Start a component that is a systemd unit of the node. Only the kubelet accepts flags."""
        if name == "kubelet":
            text = f"[Service]\nExecStart=\nExecStart={' '.join([KUBELET, *flags])}\n"
            same_flags = self.run_on_node("sh", "-c", f"cat {KUBELET_FLAGS} || true") == text
            self.write_on_node(KUBELET_FLAGS, text)
            self.run_on_node("systemctl", "daemon-reload")
            self.run_on_node("systemctl", "start" if same_flags else "restart", name)
        elif flags:
            raise CommandFailed(f"{name} accepts no flags on a node of kind")
        else:
            self.run_on_node("systemctl", "start", name)

    def start_static_pod(self, name: str, flags: Sequence[str]) -> None:
        """Write the manifest of a component that is a static pod. If the pod runs with other flags, stop it first."""
        program = static_pod(name)
        manifest = f"{MANIFESTS}/{program}.yaml"
        text = with_flags(self.run_on_node("cat", f"{ORIGINALS}/{program}.yaml"), program, flags)
        if self.run_on_node("sh", "-c", f"cat {manifest} || true") != text:
            self.stop(name)
            self.write_on_node(manifest, text)
        wait_until(lambda: program in self.running_programs(), f"the start of {name}")
        if name in ("apiserver", "etcd"):
            wait_until(self.api.is_ready, "the API server")

    def log_limit(self, size: str) -> None:
        """Set the kubelet's containerLogMaxSize to `size`, and restart the kubelet."""
        change = f"s/^containerLogMaxSize:.*/containerLogMaxSize: {size}/"
        self.run_on_node("sed", "-i", change, "/var/lib/kubelet/config.yaml")
        self.stop("kubelet")
        self.start("kubelet")

    @property
    def api(self) -> KubeApi:
        return KubeApi(self.kubectl(), self.settings.kubeconfig, self.node)

    def running_programs(self) -> set[str]:
        """Return the components' programs, as PROGRAMS names them, that run on the node now."""
        return set(self.run_on_node("sh", "-c", RUNNING, "sh", *PROGRAMS.values()).split())

    def exists(self) -> bool:
        """Return whether an earlier `create` was completed and kind still lists the cluster."""
        created = self.created_marker.exists() and self.engine.is_running()
        return created and self.settings.name in self.run_kind("get", "clusters").split()

    def run_kind(self, *words: str) -> str:
        """Run kind with `words` as its arguments, and return its stdout.

        Environment variables give kind the cluster's name.
        """
        return run(self.engine.command([self.engine.kind(), *words]), seconds=KIND_SECONDS)

    def run_kind_attached(self, words: list[str]) -> int:
        """Run kind with `words` as its arguments, on the user's terminal. Return kind's exit code."""
        return subprocess.run(self.engine.command([self.engine.kind(), *words]), check=False).returncode

    def run_on_node(self, *words: str, stdin: str | None = None) -> str:
        interactive = ["--interactive"] if stdin is not None else []
        return run(self.engine.command([self.engine.program, "exec", *interactive, self.node, *words]), stdin=stdin)

    def write_on_node(self, path: str, text: str) -> None:
        """Write a file on the node by a rename, so that the kubelet never reads half a manifest."""
        script = 'mkdir -p "$(dirname "$1")" && cat > /kind/written && mv /kind/written "$1"'
        self.run_on_node("sh", "-c", script, "sh", path, stdin=text)


def choose_engine(settings: Settings) -> Engine:
    return Offline(settings) if settings.provider == "kind-offline" else Machine(settings)


def static_pod(name: str) -> str:
    """Return the name of a component's program, such as `kube-apiserver`.

    Raise CommandFailed if the component is no static pod.
    """
    if name not in STATIC_PODS:
        raise CommandFailed(f"cannot stop {name} on a node of kind. Possible are {', '.join((*UNITS, *STATIC_PODS))}.")
    return STATIC_PODS[name]


def with_flags(manifest: str, program: str, flags: Sequence[str]) -> str:
    """Return a static pod's manifest with more flags at the end of its command.

    A program uses the last value of a repeated flag, so the new flags override the earlier flags.
    """
    lines = manifest.splitlines(keepends=True)
    place = lines.index(f"    - {program}\n") + 1
    while lines[place].startswith("    - --"):
        place += 1
    return "".join([*lines[:place], *(f"    - {flag}\n" for flag in flags), *lines[place:]])
