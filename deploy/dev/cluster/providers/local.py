"""The local cluster: upstream Kubernetes on this machine without any container engine, in about ten seconds.

One process tree in namespaces of its own (see node_init.py), joined to the machine by one veth pair, with routes to the
pods' and the Services' addresses. It lives until `down` or the machine's end, not with the command that started it.
`up` goes on wherever an earlier one was interrupted: a node that lives is completed, anything else is removed first.
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
from deploy.dev.cluster.kube_api import Api
from deploy.dev.cluster.node import certificates, cluster_dns, components, leftovers, namespaces
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import until

ORDER_SECONDS = 120.0
SOCKET_PATH_LIMIT = 107


class Local:
    """The provider `local`: every verb of the command line, for a cluster on this machine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder

    def build(self) -> None:
        """Installs what building needs and builds the node's binaries; nothing when all are there."""
        if go_build.missing(self.settings, go_build.NODE):
            namespaces.require_root()
            debian.install(debian.NODE_PACKAGES)
        go_build.build(self.settings)

    def up(self) -> None:
        """Brings the cluster up, or completes it, and returns once pods, Services and DNS work."""
        namespaces.require_root()
        debian.install(debian.NODE_PACKAGES)
        go_build.build(self.settings)
        images.system_images(self.settings)
        with locks.lock(self.lock, "another command on this cluster"), step(f"cluster {self.settings.name} up"):
            if namespaces.live(self.settings):
                namespaces.refuse_other_settings(self.settings)
            with step("certificates, settings, the node's namespaces and network"):
                if not namespaces.live(self.settings):
                    self.prepare()
                namespaces.await_first(self.settings)
                namespaces.join_network(self.settings)
            self.start_components()
            self.await_ready()
        report(f"Kubernetes v{self.settings.kubernetes} answers: export KUBECONFIG={self.settings.kubeconfig}")

    def down(self) -> None:
        """Ends the cluster and removes all of it. Says so when there was none."""
        namespaces.require_root()
        existed = self.folder.exists()
        with locks.lock(self.lock, "another command on this cluster"), step(f"cluster {self.settings.name} down"):
            leftovers.remove(self.settings)
        if not existed:
            report("There was no cluster.")

    def status(self) -> bool:
        """Prints one line per component; True when the cluster is whole."""
        if not namespaces.live(self.settings):
            print(f"{self.settings.name}: down")
            return False
        running = self.receive(self.send("status"))
        for name, runs in running.items():
            print(f"{name}: {'running' if runs else 'stopped'}")
        ready = all(running.values()) and self.api.node_ready()
        print(f"{self.settings.name}: {'ready' if ready else 'not ready'}, KUBECONFIG={self.settings.kubeconfig}")
        return ready

    def kubeconfig(self) -> Path:
        """The path of the kubeconfig file of a cluster that lives."""
        self.require_up()
        return self.settings.kubeconfig

    def program(self) -> Path:
        """Where kubectl is."""
        return go_build.binary(self.settings, "kubectl")

    def address(self) -> str:
        """This machine, on the link that joins it to the node."""
        return self.settings.gateway

    def load(self, archive: Path) -> None:
        """Imports a docker or OCI archive into the node's containerd."""
        self.require_up()
        run([go_build.binary(self.settings, "ctr"), "--address", self.settings.socket, "--namespace", "k8s.io",
             "images", "import", "--local", archive], seconds=300)  # fmt: skip

    def tag(self, image: str, name: str) -> None:
        """Gives an image of the node's containerd another name."""
        self.require_up()
        run([go_build.binary(self.settings, "ctr"), "--address", self.settings.socket, "--namespace", "k8s.io",
             "images", "tag", "--force", image, name], seconds=60)  # fmt: skip

    def stop(self, name: str) -> None:
        """Ends one component and returns once its process is gone. Pods keep running."""
        self.require_up()
        self.order("stop", name)

    def start(self, name: str, flags: Sequence[str] = ()) -> None:
        """Starts one component, with these flags beside its own, and returns once it answers."""
        self.require_up()
        self.receive(self.send("start", name, flags))
        if name == "kubelet" and self.receive(self.send("status"))["apiserver"]:
            until(self.api.kubelet_knows_its_pods, "the kubelet to know its pods")

    def log_limit(self, size: str) -> None:
        """Starts the kubelet again with another containerLogMaxSize."""
        self.require_up()
        self.stop("kubelet")
        components.write_json(self.folder / "kubelet.json", components.kubelet(self.settings, self.folder, size))
        self.start("kubelet")

    @property
    def api(self) -> Api:
        """The cluster's API."""
        return Api(self.program(), self.settings.kubeconfig, self.settings.name)

    @property
    def lock(self) -> Path:
        """The lock of commands that change the cluster. It stays: removing a lock that others wait for is unsafe."""
        return self.settings.cache / f"{self.settings.name}.lock"

    def require_up(self) -> None:
        """Refuses when there is no cluster."""
        namespaces.require_root()
        if not namespaces.live(self.settings):
            raise CommandFailed("the cluster is not up: run `up` first")

    def prepare(self) -> None:
        """From nothing to a node that waits for orders: what was there before is removed first."""
        if len(str(self.settings.socket)) > SOCKET_PATH_LIMIT:
            raise CommandFailed(
                f"{self.settings.socket} is too long for a socket's path: set SEALCI_CACHE to a shorter one"
            )
        namespaces.clear(self.settings)
        certificates.create(self.settings, self.folder / "pki")
        components.write(self.settings, self.folder)
        shutil.copy(self.folder / "pki" / "admin.kubeconfig", self.settings.kubeconfig)
        namespaces.start(self.settings)

    def start_components(self) -> None:
        """Starts all components, those that need nobody first; what they will need is made ready meanwhile."""
        with step("etcd, containerd, API server"):
            self.order("start", "etcd", "containerd")
            waiting = self.send("start", "apiserver")
            for archive in images.system_images(self.settings):
                self.load(archive)
            self.receive(waiting)
        with step("controllers, scheduler, kubelet, kube-proxy"):
            orders = [self.send("start", n) for n in ("kubelet", "controller-manager", "scheduler", "kube-proxy")]
            self.api.kubectl(["apply", "--filename", "-"], stdin=json.dumps(cluster_dns.manifest(self.settings)))
            for waiting in orders:
                self.receive(waiting)

    def order(self, verb: str, *names: str) -> None:
        """One order to each of these components, all at once; returns when all are done."""
        for waiting in [self.send(verb, name) for name in names]:
            self.receive(waiting)

    def send(self, verb: str, name: str = "", flags: Sequence[str] = ()) -> socket.socket:
        """Gives one order to PID 1 of the node; `receive` has its answer."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(ORDER_SECONDS)
        try:
            connection.connect(str(self.folder / "control.sock"))
            connection.sendall(json.dumps({"verb": verb, "name": name, "flags": list(flags)}).encode() + b"\n")
        except OSError as error:
            connection.close()
            raise CommandFailed(f"the node does not take the order {verb} {name}: {error}") from None
        return connection

    def receive(self, connection: socket.socket) -> dict[str, bool]:
        """The answer to an order. Refuses with the node's sentence when it could not obey."""
        with connection, connection.makefile() as lines:
            try:
                answer = json.loads(lines.readline())
            except (OSError, json.JSONDecodeError) as error:
                raise CommandFailed(f"the node did not answer: {error}") from None
        if "error" in answer:
            raise CommandFailed(f"{answer['error']}; the logs are in {self.folder}/logs")
        return dict(answer)

    def await_ready(self) -> None:
        """Waits for what a first pod needs: the default ServiceAccount, the node, Services and cluster DNS."""
        with step("the first ServiceAccount, the node, Services and cluster DNS"):
            until(self.api.default_account_exists, "the ServiceAccount `default`")
            until(self.api.node_ready, "the node")
            until(lambda: cluster_dns.answers(self.settings), "cluster DNS behind its Service")
