"""Create, find and remove the cgroup of a cluster, under which all its pods run.

On a machine with cgroup v1 there is one cgroup of the same name in each hierarchy.
"""

from __future__ import annotations

import time
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed
from deploy.dev.cluster.settings import Settings

# Seconds until the removal of a cgroup fails. A killed process can stay in its cgroup for some time after the kill.
REMOVE_SECONDS = 20.0
POLL_SECONDS = 0.05


def mount_table() -> list[str]:
    """Return one line per mount that this process sees: device, path, type, options."""
    return Path("/proc/self/mounts").read_text("utf-8").splitlines()


def of_cluster(settings: Settings) -> list[Path]:
    """Return the paths of the cluster's cgroup, one for each cgroup hierarchy in which the cgroup exists."""
    roots = [Path(line.split()[1]) for line in mount_table() if line.split()[2] in ("cgroup", "cgroup2")]
    return [root / settings.name for root in roots if (root / settings.name).is_dir()]


def create(settings: Settings) -> None:
    """Create the cluster's cgroup in every hierarchy. The kubelet does not start if its cgroup does not exist."""
    for line in mount_table():
        _, root, kind, *_ = line.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        group = Path(root) / settings.name
        group.mkdir(exist_ok=True)
        # A new cpuset of cgroup v1 has no CPU and no memory, and the kernel moves no process into such a cgroup.
        for name in ("cpuset.cpus", "cpuset.mems"):
            if kind == "cgroup" and (group / name).exists():
                (group / name).write_text((Path(root) / name).read_text("utf-8"), "utf-8")


def remove(top: Path) -> None:
    """Remove the cgroup `top` and all cgroups below it. Raise CommandFailed if a process does not leave one of them.

    The kernel only removes a cgroup without children and without processes. So the loop removes the deepest cgroups
    first, and repeats while processes end.
    """
    deadline = time.monotonic() + REMOVE_SECONDS
    while top.exists():
        for group in sorted((p for p in [top, *top.rglob("*")] if p.is_dir()), key=lambda p: -len(p.parts)):
            try:
                group.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                break
        if top.exists() and time.monotonic() > deadline:
            raise CommandFailed(f"the cgroup {top} still has processes, which this cluster did not start")
        if top.exists():
            time.sleep(POLL_SECONDS)
