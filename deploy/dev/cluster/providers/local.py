"""Run upstream Kubernetes on this machine without a container engine. `up` takes about ten seconds.

The node is a process tree in namespaces (see the package `node`). The tree outlives the command that started it, until
`down` or a shutdown of the machine. `up` continues after an interrupted `up`: if PID 1 of the node runs, `up` starts
the missing components. Otherwise `up` removes what is left and begins anew.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from deploy.dev.cluster import locks
from deploy.dev.cluster.builds import debian, go_build, images
from deploy.dev.cluster.console import CommandFailed, report, run, step
from deploy.dev.cluster.kube_api import KubeApi
from deploy.dev.cluster.node import certificates, cluster_dns, components, config_files, leftovers, namespaces, way_out
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import wait_until

# Seconds until a request to PID 1 of the node fails.
REQUEST_SECONDS = 120.0
# Maximum number of bytes in the path of a Unix socket.
SOCKET_PATH_LIMIT = 107


class Local:
    """The provider `local`. An object lives as long as one command of the user.

    All state of the cluster is in the cluster's folder and in PID 1 of the node.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder

    def build(self) -> None:
        """Build the binaries that the cache lacks, and install the Debian packages for the builds."""
        if go_build.missing(self.settings, go_build.NODE):
            namespaces.require_root()
            debian.install(debian.NODE_PACKAGES)
        go_build.build(self.settings)

    def up(self) -> None:
        """Start or complete the cluster, and return when pods, Services and cluster DNS work."""
        namespaces.require_root()
        debian.install(debian.NODE_PACKAGES)
        go_build.build(self.settings)
        images.system_images(self.settings)
        with (
            locks.lock(self.settings.lock, "another command on this cluster"),
            step(f"cluster {self.settings.name} up"),
        ):
            if namespaces.is_running(self.settings):
                namespaces.refuse_other_settings(self.settings)
            with step("certificates, settings, the node's namespaces and network"):
                if not namespaces.is_running(self.settings):
                    self.prepare()
                namespaces.wait_until_listening(self.settings)
                namespaces.connect_network(self.settings)
                way_out.open_way(self.settings)
            self.start_components()
            self.wait_until_ready()
        report(f"Kubernetes v{self.settings.kubernetes} answers. export KUBECONFIG={self.settings.kubeconfig}")

    def down(self) -> None:
        """Remove the cluster and all that it left on this machine. If there was no cluster, report that."""
        namespaces.require_root()
        existed = self.folder.exists()
        with (
            locks.lock(self.settings.lock, "another command on this cluster"),
            step(f"cluster {self.settings.name} down"),
        ):
            leftovers.remove(self.settings)
        if not existed:
            report("There was no cluster.")

    def status(self) -> bool:
        """Print one line per component. Return whether all components run and the node is ready."""
        if not namespaces.is_running(self.settings):
            print(f"{self.settings.name}: down")
            return False
        running = self.receive(self.send("status"))
        for name, runs in running.items():
            print(f"{name}: {'running' if runs else 'stopped'}")
        ready = all(running.values()) and self.api.node_ready()
        print(f"{self.settings.name}: {'ready' if ready else 'not ready'}, KUBECONFIG={self.settings.kubeconfig}")
        return ready

    def kubeconfig(self) -> Path:
        """Return the path of the kubeconfig. Raise CommandFailed if the cluster is not up."""
        self.require_up()
        return self.settings.kubeconfig

    def kubectl(self) -> Path:
        return go_build.binary(self.settings, "kubectl")

    def address(self) -> str:
        return self.settings.gateway

    def load(self, archive: Path) -> None:
        """Import a docker or OCI archive into the node's containerd."""
        self.require_up()
        run([go_build.binary(self.settings, "ctr"), "--address", self.settings.socket, "--namespace", "k8s.io",
             "images", "import", "--local", archive], seconds=300)  # fmt: skip

    def tag(self, image: str, name: str) -> None:
        self.require_up()
        run([go_build.binary(self.settings, "ctr"), "--address", self.settings.socket, "--namespace", "k8s.io",
             "images", "tag", "--force", image, name], seconds=60)  # fmt: skip

    def stop(self, name: str) -> None:
        """Stop one component and return when its process is gone. The pods of actions keep running."""
        self.require_up()
        self.request_all("stop", name)

    def start(self, name: str, flags: Sequence[str] = ()) -> None:
        """Start one component with `flags` added to its command line, and return when the component answers."""
        self.require_up()
        self.receive(self.send("start", name, flags))
        if name == "kubelet" and self.receive(self.send("status"))["apiserver"]:
            wait_until(self.api.kubelet_knows_its_pods, "the kubelet to know its pods")

    def log_limit(self, size: str) -> None:
        """Set the kubelet's containerLogMaxSize to `size`, and restart the kubelet."""
        self.require_up()
        self.stop("kubelet")
        config_files.write_json(self.folder / "kubelet.json", config_files.kubelet(self.settings, self.folder, size))
        self.start("kubelet")

    @property
    def api(self) -> KubeApi:
        return KubeApi(self.kubectl(), self.settings.kubeconfig, self.settings.name)

    def require_up(self) -> None:
        namespaces.require_root()
        if not namespaces.is_running(self.settings):
            raise CommandFailed("the cluster is not up. Run `up` first.")

    def prepare(self) -> None:
        """Remove what is left of an earlier cluster, write all files, and start PID 1 of the node."""
        if len(str(self.settings.socket)) > SOCKET_PATH_LIMIT:
            raise CommandFailed(
                f"{self.settings.socket} is too long for the path of a socket. Set SEALCI_CACHE to a shorter path."
            )
        namespaces.prepare(self.settings)
        certificates.create(self.settings, self.folder / "pki")
        config_files.write(self.settings, self.folder)
        components.write(self.settings, self.folder)
        shutil.copy(self.folder / "pki" / "admin.kubeconfig", self.settings.kubeconfig)
        namespaces.start(self.settings)

    def start_components(self) -> None:
        """Start all components. Load images and create cluster DNS while the components start."""
        with step("etcd, containerd, API server"):
            self.request_all("start", "etcd", "containerd")
            # Request the start of the API server, which needs etcd. While it starts, import the images, which needs
            # only containerd.
            answer = self.send("start", "apiserver")
            for archive in images.system_images(self.settings):
                self.load(archive)
            self.receive(answer)
        with step("controllers, scheduler, kubelet, kube-proxy"):
            answers = [self.send("start", n) for n in ("kubelet", "controller-manager", "scheduler", "kube-proxy")]
            self.api.kubectl(["apply", "--filename", "-"], stdin=json.dumps(cluster_dns.manifest(self.settings)))
            for answer in answers:
                self.receive(answer)

    def request_all(self, verb: str, *names: str) -> None:
        """Send PID 1 one request for each name at the same time. Return when PID 1 has answered all of them."""
        for answer in [self.send(verb, name) for name in names]:
            self.receive(answer)

    def send(self, verb: str, name: str = "", flags: Sequence[str] = ()) -> socket.socket:
        """Send one request to PID 1 of the node. Return the connection, from which `receive` reads the answer."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(REQUEST_SECONDS)
        try:
            connection.connect(str(self.folder / "control.sock"))
            connection.sendall(json.dumps({"verb": verb, "name": name, "flags": list(flags)}).encode() + b"\n")
        except OSError as error:
            connection.close()
            raise CommandFailed(f"PID 1 of the node does not accept the request {verb} {name}: {error}") from None
        return connection

    def receive(self, connection: socket.socket) -> dict[str, bool]:
        """Wait for the answer of PID 1 to a request that `send` sent.

        Raise CommandFailed if no answer comes, or if the answer contains an error.
        """
        with connection, connection.makefile() as lines:
            try:
                answer = json.loads(lines.readline())
            except (OSError, json.JSONDecodeError) as error:
                raise CommandFailed(f"PID 1 of the node did not answer: {error}") from None
        if "error" in answer:
            raise CommandFailed(f"{answer['error']}. The logs are in {self.folder}/logs.")
        return dict(answer)

    def wait_until_ready(self) -> None:
        """Wait for all that a first pod needs: the ServiceAccount `default`, the node, Services and cluster DNS."""
        with step("the first ServiceAccount, the node, Services and cluster DNS"):
            wait_until(self.api.default_account_exists, "the ServiceAccount `default`")
            wait_until(self.api.node_ready, "the node")
            wait_until(lambda: cluster_dns.answers(self.settings), "cluster DNS behind its Service")
