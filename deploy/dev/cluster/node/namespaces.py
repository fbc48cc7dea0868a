"""Namespaces of a cluster's own on this machine, and the link that joins them to it.

A process tree below `unshare --kill-child` whose first process is node_init.py: ending that one ends everything in it, drops
every mount and takes the network along. The local cluster runs its components in it, `kind-offline` its container
engine. One veth pair joins it to the machine, with routes to the addresses of pods and Services. All of it lives until
`leftovers.remove` or the machine's end, not with the command that started it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deploy.dev.cluster.builds import debian
from deploy.dev.cluster.console import CommandFailed, run, tail
from deploy.dev.cluster.node import leftovers, processes
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import until

KINDS = ("--net", "--mount", "--pid", "--uts", "--ipc")
# Puts the shell that reads it into cgroups, then becomes the command behind them.
JOIN = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@"'


def live(settings: Settings) -> bool:
    """Whether the process tree runs."""
    return bool(processes.of_node(settings.folder))


def refuse_other_settings(settings: Settings) -> None:
    """A cluster that is up keeps what it was made with."""
    made = json.loads((settings.folder / "settings.json").read_text("utf-8"))
    if made != settings.fixed:
        words = ", ".join(f"{key}={value}" for key, value in made.items())
        raise CommandFailed(f"the cluster that is up was made with {words}: run `down` first")


def clear(settings: Settings) -> None:
    """From whatever is there to an empty folder, the cluster's cgroups, and the kernel's own values written down."""
    leftovers.remove(settings)
    settings.folder.mkdir(mode=0o700, parents=True)
    (settings.folder / "settings.json").write_text(json.dumps(settings.fixed), "utf-8")
    leftovers.remember_kernel_settings(settings)
    leftovers.CNI_STATE.mkdir(exist_ok=True)
    leftovers.create_cgroups(settings)


def start(settings: Settings, *, own_cgroups: bool = False) -> None:
    """Starts PID 1 in its namespaces, detached from this command; with the cluster's cgroups as all that it sees."""
    kinds = [*KINDS, "--cgroup"] if own_cgroups else KINDS
    command = ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc",
               sys.executable, "-I", "-B", str(processes.NODE_SCRIPT), str(settings.folder)]  # fmt: skip
    with (settings.folder / "logs" / "node.log").open("ab") as output:
        node = subprocess.Popen(
            joined(settings, command) if own_cgroups else command,
            cwd="/", env={"PATH": debian.SYSTEM_PATH, "HOME": "/root"}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    # Its command line, by which it is known, shows a moment after it was started.
    until(lambda: live(settings) or node.poll() is not None, "the node's first process")


def joined(settings: Settings, command: Sequence[str]) -> list[str]:
    """The command, in the cluster's cgroups."""
    return ["sh", "-c", JOIN, "sh", *map(str, leftovers.cgroups(settings)), "--", *command]


def entered(settings: Settings, command: Sequence[str]) -> list[str]:
    """The command, in namespaces that were started with their own cgroups. Refuses when they are not there."""
    pid = processes.first_of_node(settings.folder)
    if pid is None:
        raise CommandFailed("the cluster is not up: run `up` first")
    return joined(settings, ["nsenter", f"--target={pid}", *KINDS, "--cgroup", *command])


def await_first(settings: Settings) -> None:
    """Waits until PID 1 takes orders. Refuses with its last words when it has ended."""
    until(lambda: listens(settings) or not live(settings), "the node's first process")
    if not live(settings):
        words = (settings.folder / "logs" / "node.log").read_text("utf-8", "replace")
        raise CommandFailed(f"the node's namespaces could not be made: {tail(words)}")


def listens(settings: Settings) -> bool:
    """Whether PID 1 takes orders."""
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(str(settings.folder / "control.sock"))
        return True
    return False


def join_network(settings: Settings) -> None:
    """Joins them to the machine: one veth pair, addresses, routes to pods and Services."""
    pid = str(processes.first_of_node(settings.folder))
    if not (Path("/sys/class/net") / settings.name).exists():
        run(["ip", "link", "add", settings.name, "type", "veth", "peer", "name", "eth0", "netns", pid])
    run(["ip", "address", "replace", f"{settings.gateway}/24", "dev", settings.name])
    run(["ip", "link", "set", settings.name, "up"])
    inside = ["nsenter", "--net", "--target", pid, "ip"]
    run([*inside, "address", "replace", f"{settings.node_address}/24", "dev", "eth0"])
    run([*inside, "link", "set", "eth0", "up"])
    for network in (settings.pod_network, settings.service_network):
        run(["ip", "route", "replace", network, "via", settings.node_address, "dev", settings.name])


def require_root() -> None:
    """Refuses when this user cannot make namespaces."""
    if os.geteuid() != 0:
        raise CommandFailed("this cluster needs root: run the command with sudo, or set CLUSTER=kind or existing")
