"""Start a node's process tree in namespaces of its own, and connect the tree to this machine's network.

The tree runs below `unshare --kill-child`, and its PID 1 is node_init.py. When PID 1 ends, the kernel kills every
process of the tree and drops its mounts and its network. The provider `local` runs the components of Kubernetes in the
tree. The provider `kind-offline` runs its container engine there. A veth pair connects the tree to this machine, which
has routes to the subnets of pods and Services. The tree outlives the command that started it, and ends with
`leftovers.remove` or when the machine shuts down.
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
from deploy.dev.cluster.node import cgroups, kernel_settings, leftovers, processes
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import wait_until

NAMESPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")
# A shell script that moves its shell into the cgroups before `--` and then executes the command after `--`.
JOIN_CGROUPS = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@"'


def is_running(settings: Settings) -> bool:
    """Return whether the node's process tree runs."""
    return bool(processes.node_pids(settings.folder))


def refuse_other_settings(settings: Settings) -> None:
    """Raise CommandFailed if the cluster that is up was created with other settings."""
    created_with = json.loads((settings.folder / "settings.json").read_text("utf-8"))
    if created_with != settings.creation_settings:
        words = ", ".join(f"{key}={value}" for key, value in created_with.items())
        raise CommandFailed(f"the cluster that is up was created with {words}. Run `down` first.")


def prepare(settings: Settings) -> None:
    """Remove what an earlier cluster left, then create the folder and the cgroups and save the kernel settings."""
    leftovers.remove(settings)
    settings.folder.mkdir(mode=0o700, parents=True)
    (settings.folder / "settings.json").write_text(json.dumps(settings.creation_settings), "utf-8")
    kernel_settings.save(settings)
    leftovers.CNI_STATE.mkdir(exist_ok=True)
    cgroups.create(settings)


def start(settings: Settings, *, own_cgroups: bool = False) -> None:
    """Start PID 1 in new namespaces, detached from this command.

    With `own_cgroups`, the processes of the tree run in the cluster's cgroups and see no other cgroup.
    """
    kinds = [*NAMESPACES, "--cgroup"] if own_cgroups else NAMESPACES
    # With the option -I of Python, PID 1 imports no module from the user's current folder or from the user's
    # PYTHONPATH.
    command = ["unshare", *kinds, "--fork", "--kill-child", "--mount-proc",
               sys.executable, "-I", "-B", str(processes.NODE_SCRIPT), str(settings.folder)]  # fmt: skip
    with (settings.folder / "logs" / "node.log").open("ab") as output:
        node = subprocess.Popen(
            in_cgroups(settings, command) if own_cgroups else command,
            cwd="/", env={"PATH": debian.SYSTEM_PATH, "HOME": "/root"}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    # `is_running` finds PID 1 by its command line, which /proc shows only a moment after the fork.
    wait_until(lambda: is_running(settings) or node.poll() is not None, "PID 1 of the node")


def in_cgroups(settings: Settings, command: Sequence[str]) -> list[str]:
    """Return a command line that runs the command in the cluster's cgroups."""
    return ["sh", "-c", JOIN_CGROUPS, "sh", *map(str, cgroups.of_cluster(settings)), "--", *command]


def in_namespaces(settings: Settings, command: Sequence[str]) -> list[str]:
    """Return a command line that runs the command in the namespaces of PID 1.

    The caller must have started the process tree by `start` with `own_cgroups`. Raise CommandFailed if the process tree
    does not run.
    """
    pid = processes.init_pid(settings.folder)
    if pid is None:
        raise CommandFailed("the cluster is not up. Run `up` first.")
    return in_cgroups(settings, ["nsenter", f"--target={pid}", *NAMESPACES, "--cgroup", *command])


def wait_until_listening(settings: Settings) -> None:
    """Wait until PID 1 of the node accepts requests.

    If PID 1 has ended, raise CommandFailed with the end of its log.
    """
    wait_until(lambda: is_listening(settings) or not is_running(settings), "PID 1 of the node")
    if not is_running(settings):
        log = (settings.folder / "logs" / "node.log").read_text("utf-8", "replace")
        raise CommandFailed(f"PID 1 of the node ended: {tail(log)}")


def is_listening(settings: Settings) -> bool:
    """Return whether PID 1 of the node accepts a connection on its socket."""
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.connect(str(settings.folder / "control.sock"))
        return True
    return False


def connect_network(settings: Settings) -> None:
    """Connect the network namespace to this machine: one veth pair, addresses, routes to pods and Services.

    Every step can be repeated, because `up` continues after an interrupted `up`.
    """
    pid = str(processes.init_pid(settings.folder))
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
    if os.geteuid() != 0:
        raise CommandFailed(
            "this cluster needs root. Run the command with sudo, or set CLUSTER=kind or CLUSTER=existing."
        )
