"""Remove all that a cluster leaves on this machine: processes, network, cgroups, mounts, kernel settings, folder.

Every removal looks at the state of the machine and not at a record of earlier steps. Hence the removal is complete
after a finished `up`, a half-finished `up`, a `kill -9` and a reboot.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed, run
from deploy.dev.cluster.node import cgroups, kernel_settings, processes, way_out
from deploy.dev.cluster.settings import LINK_PREFIX, Settings

# The folder in which CNI plugins keep their state if their configuration does not name another folder.
CNI_STATE = Path("/var/lib/cni")


def remove(settings: Settings) -> None:
    """Remove everything of this cluster. Do nothing if there is no cluster."""
    folder = settings.folder
    # The order of the removals matters. Processes keep the link, the cgroups and the mounts in use, and the mounts lie
    # in the folder.
    processes.kill_node(folder)
    remove_link(settings)
    way_out.close_way(settings)
    for cgroup in cgroups.of_cluster(settings):
        cgroups.remove(cgroup)
    for mount in reversed(mounts_below(folder)):
        run(["umount", "--lazy", mount])
    if not other_clusters():
        kernel_settings.restore(settings)
        if CNI_STATE.is_dir() and not any(CNI_STATE.iterdir()):
            CNI_STATE.rmdir()
    removed = folder.with_name(f"{folder.name}.removed")
    if folder.exists():
        # Rename the folder to `removed` before its deletion, so that an interrupted deletion does not leave a folder
        # that looks like a cluster. First delete the rest of an earlier interrupted deletion.
        shutil.rmtree(removed, ignore_errors=True)
        folder.replace(removed)
    shutil.rmtree(removed, ignore_errors=True)


def remove_link(settings: Settings) -> None:
    link = Path("/sys/class/net") / settings.name
    if not link.exists():
        return
    try:
        run(["ip", "link", "delete", settings.name])
    except CommandFailed:
        # The kernel itself deletes the link, some time after the network namespace at the link's other end. So `ip link
        # delete` can fail because the link is gone already.
        if link.exists():
            raise


def other_clusters() -> bool:
    """Return whether another cluster runs on this machine. Clusters share the kernel settings and /var/lib/cni."""
    return any(link.name.startswith(LINK_PREFIX) for link in Path("/sys/class/net").iterdir())


def mounts_below(folder: Path) -> list[str]:
    """Return the mounts in a folder that this process sees, outermost first."""
    paths = (line.split()[1].encode().decode("unicode_escape") for line in cgroups.mount_table())
    return [path for path in paths if Path(path).is_relative_to(folder)]
