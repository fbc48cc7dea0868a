"""The local cluster: upstream Kubernetes on this machine without any container engine, in about ten seconds.

One process tree in namespaces of its own (see node.py), joined to the machine by one veth pair, with routes to the
pods' and the Services' addresses. It lives until `down` or the machine's end, not with the command that started it.
`up` goes on wherever an earlier one was interrupted: a node that lives is completed, anything else is removed first.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import builds
import components
import debian
import dns
import images
import leftovers
import pki
import processes
from console import Refusal, run, say, step, tail
from settings import Settings

NODE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ORDER_SECONDS = 120.0
WAIT_SECONDS = 90.0
SOCKET_PATH_LIMIT = 107


class Local:
    """The provider `local`: every verb of the command line, for a cluster on this machine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.folder

    def build(self) -> None:
        """Installs what building needs and builds the node's binaries; nothing when all are there."""
        if builds.missing(self.settings, builds.NODE):
            require_root()
            debian.install(debian.NODE_PACKAGES)
        builds.build(self.settings)

    def up(self) -> None:
        """Brings the cluster up, or completes it, and returns once pods, Services and DNS work."""
        require_root()
        debian.install(debian.NODE_PACKAGES)
        builds.build(self.settings)
        images.system_images(self.settings)
        with builds.lock(self.lock, "another command on this cluster"), step(f"cluster {self.settings.name} up"):
            if self.lives():
                self.refuse_other_settings()
            with step("certificates, settings, the node's namespaces and network"):
                if not self.lives():
                    self.prepare()
                self.await_node()
                self.ensure_network()
            self.start_components()
            self.await_ready()
        say(f"Kubernetes v{self.settings.kubernetes} answers: export KUBECONFIG={self.settings.kubeconfig}")

    def down(self) -> None:
        """Ends the cluster and removes all of it. Says so when there was none."""
        require_root()
        existed = self.folder.exists()
        with builds.lock(self.lock, "another command on this cluster"), step(f"cluster {self.settings.name} down"):
            leftovers.remove(self.settings)
        if not existed:
            say("There was no cluster.")

    def status(self) -> bool:
        """Prints one line per component; True when the cluster is whole."""
        if not self.lives():
            print(f"{self.settings.name}: down")
            return False
        running = self.receive(self.send("status"))
        for name, runs in running.items():
            print(f"{name}: {'running' if runs else 'stopped'}")
        ready = all(running.values()) and self.node_ready()
        print(f"{self.settings.name}: {'ready' if ready else 'not ready'}, KUBECONFIG={self.settings.kubeconfig}")
        return ready

    def kubeconfig(self) -> Path:
        """The path of the kubeconfig file of a cluster that lives."""
        self.require_up()
        return self.settings.kubeconfig

    def program(self) -> Path:
        """Where kubectl is."""
        return builds.binary(self.settings, "kubectl")

    def address(self) -> str:
        """This machine, on the link that joins it to the node."""
        return self.settings.gateway

    def load(self, archive: Path) -> None:
        """Imports a docker or OCI archive into the node's containerd."""
        self.require_up()
        run([builds.binary(self.settings, "ctr"), "--address", self.settings.socket, "--namespace", "k8s.io",
             "images", "import", "--local", archive], seconds=300)  # fmt: skip

    def tag(self, image: str, name: str) -> None:
        """Gives an image of the node's containerd another name."""
        self.require_up()
        run([builds.binary(self.settings, "ctr"), "--address", self.settings.socket, "--namespace", "k8s.io",
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
            until(self.kubelet_knows_its_pods, "the kubelet to know its pods")

    def log_limit(self, size: str) -> None:
        """Starts the kubelet again with another containerLogMaxSize."""
        self.require_up()
        self.stop("kubelet")
        components.write_json(self.folder / "kubelet.json", components.kubelet(self.settings, self.folder, size))
        self.start("kubelet")

    @property
    def lock(self) -> Path:
        """The lock of commands that change the cluster. It stays: removing a lock that others wait for is unsafe."""
        return self.settings.cache / f"{self.settings.name}.lock"

    def lives(self) -> bool:
        """Whether the node's process tree runs."""
        return bool(processes.of_node(self.folder))

    def require_up(self) -> None:
        """Refuses when there is no cluster."""
        require_root()
        if not self.lives():
            raise Refusal("the cluster is not up: run `up` first")

    def refuse_other_settings(self) -> None:
        """A cluster that is up keeps what it was made with."""
        made = json.loads((self.folder / "settings.json").read_text("utf-8"))
        if made != self.settings.fixed:
            words = ", ".join(f"{key}={value}" for key, value in made.items())
            raise Refusal(f"the cluster that is up was made with {words}: run `down` first")

    def prepare(self) -> None:
        """From nothing to a node that waits for orders: what was there before is removed first."""
        if len(str(self.settings.socket)) > SOCKET_PATH_LIMIT:
            raise Refusal(f"{self.settings.socket} is too long for a socket's path: set SEALCI_CACHE to a shorter one")
        leftovers.remove(self.settings)
        self.folder.mkdir(mode=0o700, parents=True)
        (self.folder / "settings.json").write_text(json.dumps(self.settings.fixed), "utf-8")
        leftovers.remember_kernel_settings(self.settings)
        leftovers.CNI_STATE.mkdir(exist_ok=True)
        leftovers.create_cgroups(self.settings)
        pki.create(self.settings, self.folder / "pki")
        components.write(self.settings, self.folder)
        shutil.copy(self.folder / "pki" / "admin.kubeconfig", self.settings.kubeconfig)
        self.start_node()

    def start_node(self) -> None:
        """Starts PID 1 in its namespaces, detached from this command."""
        namespaces = ("--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        with (self.folder / "logs" / "node.log").open("ab") as output:
            node = subprocess.Popen(
                ["unshare", *namespaces, sys.executable, "-I", "-B", processes.NODE_SCRIPT, self.folder],
                cwd="/", env={"PATH": NODE_PATH, "HOME": "/root"}, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        # Its command line, by which it is known, shows a moment after it was started.
        until(lambda: self.lives() or node.poll() is not None, "the node's first process")

    def await_node(self) -> None:
        """Waits until PID 1 of the node takes orders. Refuses with its last words when it has ended."""
        until(lambda: self.listens() or not self.lives(), "the node's first process")
        if not self.lives():
            words = (self.folder / "logs" / "node.log").read_text("utf-8", "replace")
            raise Refusal(f"the node's namespaces could not be made: {tail(words)}")

    def listens(self) -> bool:
        """Whether PID 1 of the node takes orders."""
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(str(self.folder / "control.sock"))
            return True
        return False

    def ensure_network(self) -> None:
        """Joins the node to the machine: one veth pair, addresses, routes to pods and Services."""
        settings = self.settings
        pid = str(processes.first_of_node(self.folder))
        if not (Path("/sys/class/net") / settings.name).exists():
            run(["ip", "link", "add", settings.name, "type", "veth", "peer", "name", "eth0", "netns", pid])
        run(["ip", "address", "replace", f"{settings.gateway}/24", "dev", settings.name])
        run(["ip", "link", "set", settings.name, "up"])
        inside = ["nsenter", "--net", "--target", pid, "ip"]
        run([*inside, "address", "replace", f"{settings.node_address}/24", "dev", "eth0"])
        run([*inside, "link", "set", "eth0", "up"])
        for network in (settings.pod_network, settings.service_network):
            run(["ip", "route", "replace", network, "via", settings.node_address, "dev", settings.name])

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
            self.kubectl(["apply", "--filename", "-"], stdin=json.dumps(dns.manifest(self.settings)))
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
            raise Refusal(f"the node does not take the order {verb} {name}: {error}") from None
        return connection

    def receive(self, connection: socket.socket) -> dict[str, bool]:
        """The answer to an order. Refuses with the node's sentence when it could not obey."""
        with connection, connection.makefile() as lines:
            try:
                answer = json.loads(lines.readline())
            except (OSError, json.JSONDecodeError) as error:
                raise Refusal(f"the node did not answer: {error}") from None
        if "error" in answer:
            raise Refusal(f"{answer['error']}; the logs are in {self.folder}/logs")
        return dict(answer)

    def await_ready(self) -> None:
        """Waits for what a first pod needs: the default ServiceAccount, the node, Services and cluster DNS."""
        with step("the first ServiceAccount, the node, Services and cluster DNS"):
            until(self.default_account_exists, "the ServiceAccount `default`")
            until(self.node_ready, "the node")
            until(lambda: dns.answers(self.settings), "cluster DNS behind its Service")

    def kubectl(self, arguments: Iterable[str], stdin: str | None = None) -> str:
        """Runs kubectl on this cluster."""
        program = builds.binary(self.settings, "kubectl")
        return run([program, "--kubeconfig", self.settings.kubeconfig, *arguments], stdin=stdin, seconds=WAIT_SECONDS)

    def kubelet_knows_its_pods(self) -> bool:
        """Whether logs and exec work for every pod of the node: right after its start, the kubelet knows none."""
        try:
            known = json.loads(self.kubectl(["get", "--raw", f"/api/v1/nodes/{self.settings.name}/proxy/pods"]))
        except Refusal:
            return False
        selector = f"fieldSelector=spec.nodeName={self.settings.name}"
        bound = json.loads(self.kubectl(["get", "--raw", f"/api/v1/pods?{selector}"]))
        return uids(bound) <= uids(known)

    def default_account_exists(self) -> bool:
        """Whether pods in `default` would be admitted."""
        return bool(self.kubectl(["get", "serviceaccount", "default", "--ignore-not-found", "-o", "name"]))

    def node_ready(self) -> bool:
        """Whether the API says that the node is Ready."""
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        arguments = ["get", "node", self.settings.name, "--ignore-not-found", "-o", f"jsonpath={path}"]
        return self.kubectl(arguments) == "True"


def uids(pods: dict[str, Any]) -> set[str]:
    """The UIDs of the pods in a list."""
    return {pod["metadata"]["uid"] for pod in pods["items"] or ()}


def until(passes: Callable[[], bool], what: str) -> None:
    """Waits until `passes`; refuses after a minute and a half with what was waited for."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not passes():
        if time.monotonic() > deadline:
            raise Refusal(f"waited {WAIT_SECONDS:.0f} s for {what}")
        time.sleep(0.1)


def require_root() -> None:
    """Refuses when this user cannot make namespaces."""
    if os.geteuid() != 0:
        raise Refusal("the local cluster needs root: run the command with sudo, or set CLUSTER=kind or existing")
